"""The lines that start a planned run on its hardware."""

import shlex

import pytest

from anchorjax import cli
from anchorjax.plan import command, hardware, step
from tests import commands

GIVEN = ["--config=llama3_8b_128k_anchor", "--config.model.remat=full"]


def launch(target: str, changes=None) -> str:
    config = step.recipe("llama3_8b_128k_anchor", changes)
    return command.launch(config, GIVEN, target, hardware.of(target))


def test_flags_are_what_the_command_line_takes():
    changes = {"model.remat": "full", "data.tags": True, "lora.targets": ("q", "v")}
    flags = command.flags(changes)
    assert flags == ["--config.model.remat=full", "--config.data.tags=true", "--config.lora.targets=q,v"]
    parsed = commands.parse(shlex.join(["anchorjax", "train", "--config=quickstart", "--workdir=r", *flags]))
    config, _ = parsed.arguments
    assert (config.model.remat, config.data.tags, config.lora.targets) == ("full", True, ("q", "v"))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "v5p:4x4x4",
            ["--accelerator-type=v5p-128 ", "--worker=all", " gcsfs", "--workdir=gs://BUCKET/llama3_8b_128k_anchor"],
        ),
        ("v4:4x4x4", ["--accelerator-type=v4-128 "]),
        ("v5e:16x16", ["--accelerator-type=v5litepod-256 "]),
        ("v6e", ["--accelerator-type=v6e-4 "]),
        (
            "2xv5p:4x4x4",
            ["--tpu-type=v5p-128 --num-slices=2 ", "--config.mesh.slices=2", "/shared/runs/llama3_8b_128k_anchor"],
        ),
        ("tpu7x:4x4x8", ["--tpu-type=tpu7x-4x4x8 --num-slices=1 "]),
        ("h100:8", ["XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 anchorjax train "]),
        ("h100:64", ["#SBATCH --nodes=8", "srun --kill-on-bad-exit=0 anchorjax train "]),
    ],
)
def test_the_command_is_that_of_the_hardware_and_has_all_that_was_given(target, words):
    lines = launch(target)
    assert all(word in lines for word in [*words, *GIVEN, "--config.data.store=STORE"]), lines
    assert ("XLA_PYTHON_CLIENT_MEM_FRACTION" in lines) == target.startswith("h100")


def test_a_store_that_is_set_is_not_asked_for():
    assert "STORE" not in launch("h100:8", {"data.store": "stores/x"})


def test_the_module_and_the_command_are_one_program():
    from anchorjax.plan import __main__

    assert __main__.plan.main is cli.importlib.import_module("anchorjax.cli.plan").main
