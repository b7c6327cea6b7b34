"""Marks in the text of a chat template, which tell which message wrote what.

A mark is written between two NUL characters, which no text of a conversation holds. Marks stand around
{% generation %} blocks, or else around each pass of a loop over messages, so they move with the text wherever a
template puts it. `Marked.read` takes them out again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.visitor import NodeTransformer

_NUL = "\0"
_BEGIN, _END = "(", ")"  # of a {% generation %} block
_LOOP, _OVER = "<", ">"  # of a pass of a loop
_MARK = "mark_of_a_message"  # the variable of the function that writes _LOOP


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text without its marks.

    Attributes:
      text: as the template writes it.
      generated: the characters [begin, end) of each {% generation %} block, in order.
      written: of each message, the characters [begin, end) of each pass of a loop over it that wrote any.
    """

    text: str
    generated: tuple[tuple[int, int], ...]
    written: Mapping[int, tuple[tuple[int, int], ...]]

    @classmethod
    def read(cls, text: str) -> "Marked":
        """Raises ValueError if marks do not lie around what they are of, or are cut."""
        pieces, at = [], 0
        generated: list[tuple[int, int]] = []
        begins: list[int] = []
        loops: list[tuple[str, int, int]] = []  # those that are open: name, message (-1: something else), begin
        written: dict[int, tuple[tuple[int, int], ...]] = {}
        for number, piece in enumerate(text.split(_NUL)):
            if number % 2 == 0:
                pieces.append(piece)
                at += len(piece)
                continue
            kind, (name, _, message) = piece[:1], piece[1:].partition(":")
            is_open = {_BEGIN: True, _LOOP: True, _END: bool(begins), _OVER: bool(loops)}
            if not is_open.get(kind):  # a template that slices its text may cut a mark in two
                raise ValueError("the chat template cuts what it has written")
            if kind == _BEGIN:
                begins.append(at)
            elif kind == _END:
                generated.append((begins.pop(), at))
            elif kind == _LOOP:
                loops.append((name, int(message), at))
            else:
                _, of_message, begin = loops.pop()
                if of_message >= 0 and begin < at:
                    written[of_message] = (*written.get(of_message, ()), (begin, at))
        if begins or loops:
            raise ValueError("the chat template cuts what it has written")
        return cls("".join(pieces), tuple(sorted(generated)), written)


class Generation(ext.Extension):
    """Writes the content of {% generation %} blocks between marks."""

    tags = frozenset({"generation"})

    def parse(self, parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [_mark(_BEGIN, line), *body, _mark(_END, line)]


def add(tree: nodes.Template, environment: jinja2.Environment) -> bool:
    """Adds marks to the loops of a template, unless it has {% generation %} blocks. Returns whether it has some."""
    marked = any(data.data == _NUL + _BEGIN + _NUL for data in tree.find_all(nodes.TemplateData))
    if not marked:
        _Loops().visit(tree)
    tree.set_environment(environment)
    return marked


def variables(numbers: Mapping[int, int]) -> dict[str, Any]:
    """Returns the variables that a template with marks needs. `numbers`: of each message by its id()."""
    return {_MARK: lambda loop, value: f"{_NUL}{_LOOP}{loop}:{numbers.get(id(value), -1)}{_NUL}"}


def line_of_assistant(tree: nodes.Template) -> int:
    """Returns the line of the branch, or else of the loop, in which a template writes the assistant's messages."""
    line = 1
    for loop in tree.find_all(nodes.For):
        if not _reads_content(loop):
            continue
        line = loop.lineno
        for branch in loop.find_all(nodes.If):
            asks = any(const.value == "assistant" for const in branch.test.find_all(nodes.Const))
            if asks and branch.body and any(_reads_content(node) for node in branch.body):
                line = branch.body[0].lineno
    return line


def _reads_content(node: nodes.Node) -> bool:
    by_key = any(const.value == "content" for const in node.find_all(nodes.Const))
    return by_key or any(one.attr == "content" for one in node.find_all(nodes.Getattr))


def _mark(kind: str, line: int, name: str = "") -> nodes.Output:
    return nodes.Output([nodes.TemplateData(f"{_NUL}{kind}{name}{_NUL}")]).set_lineno(line)


class _Loops(NodeTransformer):
    """Puts marks at the beginning and at each end of the passes of every loop."""

    def __init__(self):
        self._open: list[str] = []
        self._number = 0

    def visit_For(self, loop: nodes.For) -> nodes.For:
        is_marked = isinstance(loop.target, nodes.Name)  # "for key, value in ..." is over no message
        self._number += is_marked
        name, line = str(self._number), loop.lineno
        self._open.append(name if is_marked else "")
        self.generic_visit(loop)
        self._open.pop()
        if not is_marked:
            return loop
        value = nodes.Name(loop.target.name, "load")
        call = nodes.Call(nodes.Name(_MARK, "load"), [nodes.Const(name), value], [], None, None)
        begin = nodes.Output([call]).set_lineno(line)
        loop.body = [begin, *loop.body, _mark(_OVER, line, name)]
        return loop

    def visit_Continue(self, node: nodes.Continue) -> list[nodes.Node]:
        return self._leave(node)

    def visit_Break(self, node: nodes.Break) -> list[nodes.Node]:
        return self._leave(node)

    def _leave(self, node: nodes.Node) -> list[nodes.Node]:
        return [_mark(_OVER, node.lineno, self._open[-1]), node] if self._open[-1] else [node]
