"""A suggested command is one that its own parser and the model's context take."""

import argparse

import pytest

from anchorjax.pages.runs.reading import TITLES, read
from anchorjax.pages.runs.suggestions import suggestion
from tests import commands
from tests.evaluation import made_runs


def parse(command: str) -> argparse.Namespace:
    """What the command itself makes of its arguments."""
    found = commands.parse(command)
    assert found.program == f"{command.split()[2]}.py"
    return found.arguments


def check(arguments: argparse.Namespace, context: int) -> None:
    """What commands ask of the lengths before they read weights; see their `check_lengths`, `_choose` and `Plan`."""
    lengths = getattr(arguments, "lengths", None)
    if lengths:
        assert lengths[-1] == context
    if hasattr(arguments, "short_context"):
        assert lengths[0] > arguments.short_context + 1
        assert 0 < arguments.stride <= arguments.short_context
    if hasattr(arguments, "document_tokens"):
        assert arguments.tokens <= context
        assert 0 < arguments.document_tokens <= lengths[-1] - 2


@pytest.mark.parametrize("evaluation", TITLES)
@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, 64),
        ({"data__seq_len": 4096}, 4096),
        ({"data__positions": "pose", "data__max_position": 2048}, 2048),
    ],
)
def test_of_a_run(tmp_path, evaluation, config, context):
    path = made_runs.write_run(tmp_path / "a run", evaluations=False, **config)
    arguments = parse(suggestion(read([path])[0], evaluation))
    assert (arguments.workdir, arguments.hf, arguments.context) == (path, None, 0)
    if evaluation != "perplexity" and not (evaluation == "rope_precision" and context > 2048):
        check(arguments, context)


@pytest.mark.parametrize("evaluation", [name for name in TITLES if name != "perplexity"])
@pytest.mark.parametrize(("option", "step"), [("hf", None), ("workdir", 0)])  # 0: `anchorjax convert from-hf` made it
@pytest.mark.parametrize("known", ["needle", "ruler"])
def test_of_results_alone(tmp_path, evaluation, option, step, known):
    path = made_runs.write_results(tmp_path / "Tiny", step=step)
    for folder in path.iterdir():
        if folder.name != known:
            (folder / f"{folder.name}.json").unlink()
    arguments = parse(suggestion(read([path])[0], evaluation))
    given = {name: str(getattr(arguments, name)) for name in ("workdir", "hf") if getattr(arguments, name)}
    assert given == {option: "/models/Tiny"}
    assert arguments.out == path / evaluation.removesuffix("_text")
    assert arguments.context == 8192
    if evaluation not in ("rope_precision", "longbench", "harness"):
        check(arguments, 8192)
