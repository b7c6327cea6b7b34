"""The quickstart's first steps have the losses and operations that they had when quickstart_steps.json was written."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

FILE = pathlib.Path(__file__).with_name("quickstart_steps.json")
COMMAND = "-m tests.golden.quickstart_steps"
# The model computes in bfloat16, whose roundings depend on how a compiler fuses: jax 0.10.2 and 0.12.0 differ by up to
# 1.5e-5 in the first loss, 4.9e-5 in the four after it, and 1.1e-3 in the gradient's norm.
FIRST_LOSS, LOSS, GRAD_NORM = 1e-4, 2e-4, 5e-3
MESSAGE = f"""the first steps of configs/quickstart.py have other losses than {FILE.name}.
Update the file only if the change is meant: the recipe, the corpus, packing, initial weights, the model, the loss or
the optimizer changed what they compute, and the commit says so. A refactoring, a faster implementation or another
stack must not get here. To update it: python {COMMAND} > tests/golden/{FILE.name}"""

OPERATIONS = f"""the compiled step of configs/quickstart.py has other operations than {FILE.name}.
If they came with something that the recipe does not use, change that instead: it must leave the step as it is."""


@pytest.fixture(scope="module")
def found() -> dict:
    env = os.environ | {"XLA_FLAGS": ""}  # one device, and programs as users compile them
    done = subprocess.run(
        [sys.executable, *COMMAND.split()], cwd=FILE.parents[2], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_first_losses(found):
    golden = json.loads(FILE.read_text())
    assert found.keys() == golden.keys() and len(golden["loss"]) == 5
    np.testing.assert_allclose(found["loss"][:1], golden["loss"][:1], rtol=FIRST_LOSS, err_msg=MESSAGE)
    np.testing.assert_allclose(found["loss"], golden["loss"], rtol=LOSS, err_msg=MESSAGE)
    np.testing.assert_allclose(found["grad_norm"], golden["grad_norm"], rtol=GRAD_NORM, err_msg=MESSAGE)


def test_operations_of_the_compiled_step(found):
    """A training method that a run does not use must cost it nothing, so the step's operations stay as they are."""
    golden = json.loads(FILE.read_text())
    if found["jax"] != golden["jax"]:
        pytest.skip(f"the operations were counted with jax {golden['jax']}, and this is {found['jax']}")
    assert found["operations"] == golden["operations"], OPERATIONS
