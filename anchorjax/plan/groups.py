"""Which devices exchange with one another in a collective, from any of the ways in which XLA prints groups.

    replica_groups={{0,1},{2,3}}                        lists
    replica_groups={}                                   all devices
    replica_groups=[2,2]<=[2,2]T(1,0)                   two groups of two: numbers from 0, reshaped, and transposed
    replica_groups=mesh['a'=2,'b'=2] {'b'}              along axes of a mesh of XLA's own, whose names say nothing
    replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}    its devices in another order
    replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}         the inner half of an axis
    source_target_pairs={{0,1},{1,0}}                   a permutation

A number is a place in `mesh.devices.flat`, as JAX compiles a program for the devices in this order.
"""

import functools
import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh

Groups = tuple[tuple[int, ...], ...]

_LISTS = r"\{\{[\d,{} ]*\}\}|\{\}"
_IOTA = r"\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
_MESH = r"mesh\[[^\]]*\][^{\n]*\{[^}]*\}"
_GROUPS = re.compile(rf"(?:replica_groups|source_target_pairs)=({_LISTS}|{_IOTA}|{_MESH})")


def groups(line: str, num_devices: int) -> Groups:
    """The groups of a collective, or the pairs (source, target) of a permutation.

    Args:
      line: an instruction's text.
      num_devices: of the program.

    Raises:
      ValueError: the line has no groups, or they are printed in another way.
    """
    match = _GROUPS.search(line)
    if not match:
        raise ValueError(f"a collective whose groups are not known: {line.strip()[:200]}")
    return _parsed(match[1], num_devices)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str, num_devices: int) -> Groups:
    if text == "{}":
        return (tuple(range(num_devices)),)
    if text.startswith("{"):
        return tuple(tuple(map(int, each.split(","))) for each in re.findall(r"\{?\{([\d, ]+)\}", text))
    found = _along_axes(text) if text.startswith("mesh") else _iota(text)
    return tuple(tuple(map(int, each)) for each in found)


def _iota(text: str) -> np.ndarray:
    """[groups, devices] of "[4,2]<=[2,4]T(1,0)"."""
    shape, dims, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    return _numbered(dims, order).reshape(_ints(shape))


def _numbered(dims: str, order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return numbers.transpose(_ints(order)) if order else numbers


def _along_axes(text: str) -> np.ndarray:
    """[groups, devices] of "mesh['a'=2,'b'=4], device_ids=(...) {'b'}"; `'b':(2)2` is the inner half of b."""
    declared, between, used = re.fullmatch(r"mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text).groups()
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", declared)}
    parts = [(name, pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used)]
    cuts = {name: {1, size} for name, size in sizes.items()}
    for name, pre, size in parts:
        cuts[name] |= {int(pre), int(pre) * int(size)} if pre else set()
    # Each axis falls apart into the stretches between its cuts, the outermost first.
    pieces = [(name, low, high) for name in sizes for low, high in _stretches(sorted(cuts[name]))]
    devices = _devices(between, math.prod(sizes.values())).reshape([high // low for _, low, high in pieces])
    within = [
        place
        for name, pre, size in parts
        for place, (axis, low, high) in enumerate(pieces)
        if axis == name and (not pre or int(pre) <= low < high <= int(pre) * int(size))
    ]
    others = [place for place in range(len(pieces)) if place not in within]
    count = math.prod(devices.shape[place] for place in within)
    return devices.transpose(*others, *within).reshape(-1, count)


def _stretches(cuts: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(cuts)) or [(1, 1)]


def _devices(text: str, count: int) -> np.ndarray:
    """The devices of a mesh in its order, from "", ", device_ids=([2,4]T(1,0)) " or a list in place of that."""
    if not text.strip(" ,"):
        return np.arange(count)
    if match := re.search(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text):
        return _numbered(*match.groups()).reshape(-1)
    if match := re.search(r"\(([\d,]+)\)", text):
        return np.array(_ints(match[1]))
    raise ValueError(f"the order of a mesh's devices is not known: {text.strip()}")


def _ints(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def axes_of(found: Groups, mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which members of a group differ, in the mesh's order."""
    shape = mesh.devices.shape
    differ = np.zeros(len(shape), bool)
    for group in found:
        places = np.stack(np.unravel_index(group, shape))
        differ |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, is_used in zip(mesh.axis_names, differ, strict=True) if is_used)
