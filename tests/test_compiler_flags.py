"""Compilers take the options that the table has for them; a run refuses in one line what its compiler does not know."""

import pytest

from anchorjax import compiler_flags
from anchorjax.compiler_flags import FLAGS
from anchorjax.errors import ConfigError
from anchorjax.targets import GPUS, TPUS
from tests.compilers import require_compiler, run_program

# Of every target: its options, after its compiler has taken them.
PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
import jax
from jax.sharding import SingleDeviceSharding
from anchorjax import compiler_flags

found = {}
for target in sys.argv[1].split(","):
    device = targets.device(target)
    found[target] = compiler_flags.options("auto", device)
    assert compiler_flags.options("none", device) == {}
    x = jax.ShapeDtypeStruct((8, 128), "float32", sharding=SingleDeviceSharding(device))
    with jax.default_device(device):
        lowered = jax.jit(lambda x: x + 1).lower(x)
    lowered.compile(compiler_options=found[target])
    try:
        lowered.compile(compiler_options={"xla_no_such_option": True})
    except jax.errors.JaxRuntimeError:
        continue
    raise AssertionError(f"{target} takes any option")
print(json.dumps(found))
"""


def test_compilers_take_their_options():
    require_compiler("v5p")
    require_compiler("h100")
    found = run_program(PROGRAM, ",".join([*TPUS, *GPUS]))
    assert set(found) == {*TPUS, *GPUS}
    assert {target for target, flags in found.items() if not flags} == {"v5e", "tpu7x"}  # their defaults do it
    assert {name for flags in found.values() for name in flags} == {name for flags in FLAGS.values() for name in flags}


def test_an_option_that_the_compiler_does_not_know(monkeypatch):
    assert compiler_flags.options("auto") == {}  # on a CPU
    monkeypatch.setitem(FLAGS, "cpu", {"xla_no_such_option": True})
    with pytest.raises(ConfigError) as caught:
        compiler_flags.options("auto")
    assert caught.value.key == "train.compiler_flags" and "\n" not in str(caught.value)
    assert "'xla_no_such_option'" in str(caught.value) and str(caught.value).endswith("none takes its defaults")
    assert compiler_flags.options("none") == {}
