"""The matrix products of a program, as a compiler is given them and as it makes them: of what, how exact, from where.

A product is a fault if an operand is fp32 and may be rounded, or if it makes the loss's gradient of what was rounded to
bf16 without the part that rounding took off.
"""

import dataclasses
import json
import re
from collections import defaultdict

# Whose products take the logits' gradient, fp32 by contract; all others of the loss take hidden states and weights.
LOSS, LOGITS = "models/loss.py", "cd,vd->cv"


@dataclasses.dataclass(frozen=True)
class Product:
    """One product; `where` is the line of anchorjax that asked for it, `name` the scopes and the einsum around it.

    Attributes:
      dtypes: of both operands, `f32` or `bf16`.
      exact: may no operand be rounded?
      part: "hi" or "lo" where an operand is that part of an fp32 array.
    """

    where: str
    name: str
    dtypes: tuple[str, str]
    exact: bool
    part: str = ""

    def __str__(self):
        how = "exact" if self.exact else "at default precision"
        return f"{self.where}: {' x '.join(self.dtypes)} {how} ({self.name})"


def faults(products: list[Product], compute_dtype: str) -> list[str]:
    """Those that are fp32 by contract and may run otherwise, as lines; none is good."""
    found = [str(p) for p in products if "f32" in p.dtypes and not p.exact]
    if compute_dtype == "float32":
        found += [f"{p}: compute_dtype is float32" for p in products if "bf16" in p.dtypes]
    parts = defaultdict(list)
    for p in products:
        if LOSS in p.where and LOGITS not in p.name and "bf16" in p.dtypes:
            parts[p.where, p.name].append(p.part)
    found += [
        f"{where}: the fp32 operand is {' + '.join(p or 'rounded' for p in kept)}, not hi + lo ({name})"
        for (where, name), kept in parts.items()
        if sorted(kept) != ["hi", "lo"]
    ]
    return found


def given(lowered) -> list[Product]:
    """Those of a `jax.stages.Lowered`, kernels left out (`of_kernels`)."""
    found = []

    def walk(operation):
        for block in (block for region in operation.regions for block in region.blocks):
            for op in block.operations:
                if op.operation.name == "stablehlo.dot_general":
                    found.append(_given(op))
                walk(op.operation)

    walk(lowered.compiler_ir("stablehlo").operation)
    return found


def _given(op) -> Product:
    location = str(op.location)
    exact = all("HIGHEST" in str(x) for x in op.attributes["precision_config"])
    dtypes = tuple(str(x.type).rsplit("x", 1)[-1].rstrip(">") for x in op.operands)
    parts = [_part(x) for x in op.operands]
    return Product(_where(re.findall(r'"([^"]+\.py)":(\d+)', location)), _name(location), dtypes, exact, "".join(parts))


def _part(value) -> str:
    """Whether an operand is hi or lo of an array, by the operations that made it."""
    source = _maker(value)
    if source is None or source.name != "stablehlo.convert":
        return ""
    source = _maker(source.operands[0])
    if source is None:
        return ""
    if source.name == "stablehlo.reduce_precision":
        return "hi"
    rest = source.name == "stablehlo.subtract" and _maker(source.operands[1])
    return "lo" if rest and rest.name == "stablehlo.reduce_precision" else ""


def _maker(value):
    """The operation whose result a value is; None for an argument."""
    owner = value.owner
    return getattr(owner, "operation", owner) if hasattr(getattr(owner, "operation", owner), "operands") else None


def _where(frames: list[tuple[str, str]]) -> str:
    """The innermost line of anchorjax, but for the module whose job products are."""
    own = (f"{file.rsplit('anchorjax/', 1)[1]}:{line}" for file, line in frames if "/anchorjax/" in file)
    return next((place for place in own if not place.startswith("precision.py")), "outside of anchorjax")


def _name(text: str) -> str:
    """The einsum that a name holds, or all of it."""
    inside = re.search(r"([a-z.]+,[a-z.,]+->[a-z.]+)", text)
    return inside[1] if inside else text[:80]


def of_kernels(jaxpr) -> list[Product]:
    """Those inside the Pallas kernels of a jaxpr, at any depth."""
    found = []

    def walk(jaxpr, in_kernel: bool):
        for eqn in jaxpr.eqns:
            if in_kernel and eqn.primitive.name == "dot_general":
                frames = [(frame.file_name, str(frame.line_num)) for frame in eqn.source_info.traceback.frames]
                short = {"float32": "f32", "bfloat16": "bf16"}
                dtypes = tuple(short.get(str(x.aval.dtype), str(x.aval.dtype)) for x in eqn.invars)
                exact = "HIGHEST" in str(eqn.params["precision"])
                frames = [frame for frame in frames if not frame[0].endswith("attention/kernels.py")]
                found.append(Product(_where(frames), "kernel", dtypes, exact))
            for inner in _jaxprs(eqn.params.values()):
                walk(inner, in_kernel or eqn.primitive.name == "pallas_call")

    walk(jaxpr, False)
    return found


def _jaxprs(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def made(text: str) -> list[Product]:
    """Those of an optimized HLO module (`Compiled.as_text()`) for TPUs or GPUs: dots, convolutions, calls of cuBLAS."""
    frames = _Frames(text)
    dtypes = dict(re.findall(r"(%[\w.-]+) = \(?([a-z]+\d+)\[", text))
    found = []
    for line in text.splitlines():
        call = re.search(r" (?:dot|convolution)\((%[\w.-]+), (%[\w.-]+)\)", line)
        cublas = re.search(r' custom-call\((%[\w.-]+), (%[\w.-]+).*custom_call_target="__cublas', line)
        if not (call or cublas):
            continue
        kinds = tuple(dtypes.get(name, "?") for name in (call or cublas).groups())
        precision = re.search(r"operand_precision=\{([^}]*)\}", line)
        precision = precision[1] if precision else ",".join(_cublas_precision(line)) if cublas else "default"
        exact = {x.strip().lower() for x in precision.split(",")} == {"highest"}
        found.append(Product(_where(frames.of(line)), _name(line), kinds, exact))
    return found


def _cublas_precision(line: str) -> list[str]:
    config = json.loads(line[line.index("backend_config=") + len("backend_config=") :])
    return config["gemm_backend_config"]["precision_config"]["operand_precision"]


class _Frames:
    """The tables at the head of an optimized module, by which its lines say where they are from."""

    def __init__(self, text: str):
        files = dict(re.findall(r'^(\d+) "([^"]+\.py)"$', text, re.MULTILINE))
        places = re.findall(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", text, re.MULTILINE)
        self._places = {number: (files.get(file, ""), line) for number, file, line in places}
        frames = re.findall(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", text, re.MULTILINE)
        self._frames = {number: (place, parent) for number, place, parent in frames}

    def of(self, line: str) -> list[tuple[str, str]]:
        number, found = re.search(r"stack_frame_id=(\d+)", line), []
        number = number and number[1]
        while number in self._frames:
            place, parent = self._frames[number]
            found.append(self._places[place])
            number = str(int(parent) - 1)  # written one higher than frames are numbered: 1 is none
        return found
