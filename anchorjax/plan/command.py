"""The command that starts the planned run on its hardware, as docs/running.md explains it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax.config import Config
from anchorjax.config.manual import written
from anchorjax.plan.hardware import Hardware, chips_of
from anchorjax.targets import NODE, TPUS, Topology

# What Google Cloud calls them: accelerator types count TensorCores on v4 and v5p, and chips on v5e and v6e; the
# software of a TPU VM. tpu7x comes in clusters of GKE alone, where XPK names the torus.
_TYPES = {"v4": "v4-{cores}", "v5e": "v5litepod-{chips}", "v5p": "v5p-{cores}", "v6e": "v6e-{chips}"}
_TYPES["tpu7x"] = "tpu7x-{torus}"
_VERSIONS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Arguments that set keys: ["--config.model.remat=full"]."""
    return [f"--config.{name}={written(value)}" for name, value in changes.items()]


def launch(config: Config, given: Sequence[str], target: str, hardware: Hardware) -> str:
    """Lines to type on the hardware.

    Args:
      config: the run's.
      given: arguments of `anchorjax train` that make it, `--config=RECIPE` among them.
      target: a name of `targets.Topology`.
    """
    topology, name = Topology.parse(target), _name(given)
    if not config.data.store and not config.data.source:
        given = [*given, "--config.data.store=STORE"]
    slices = f"--config.mesh.slices={topology.slices}"
    if topology.slices > 1 and slices not in given:
        given = [*given, slices]
    if hardware.is_tpu:
        is_cluster = topology.slices > 1 or topology.target == "tpu7x"
        return (_xpk if is_cluster else _tpu_vm)(topology, name, given)
    setting = f"XLA_PYTHON_CLIENT_MEM_FRACTION={hardware.mem_fraction:g}"
    count = int(topology.size or 4)
    if count <= NODE:
        return f"{setting} {_train(given, f'runs/{name}')}"
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --nodes={count // NODE}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --gpus-per-node={NODE}",
            "#SBATCH --time=24:00:00",
            "#SBATCH --requeue",
            "#SBATCH --signal=TERM@300",
            "source /shared/venv/bin/activate",
            f"export {setting}",
            f"srun --kill-on-bad-exit=0 {_train(given, f'/shared/runs/{name}')}",
            "code=$?",
            'if [ $code -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            "exit $code",
        ]
    )


def _train(given: Sequence[str], workdir: str) -> str:
    return shlex.join(["anchorjax", "train", *given, f"--workdir={workdir}"])


def _tpu_vm(topology: Topology, name: str, given: Sequence[str]) -> str:
    vm = _slug(name)
    on_all = f"gcloud compute tpus tpu-vm ssh {vm} --zone=ZONE --worker=all --command="
    return "\n".join(
        [
            f"gcloud compute tpus tpu-vm create {vm} --zone=ZONE --accelerator-type={_type(topology)} "
            f"--version={_VERSIONS[topology.target]}",
            f"""{on_all}"pip install '/shared/anchorjax[tpu]' gcsfs\"""",
            on_all + shlex.quote(_train(given, f"gs://BUCKET/{name}")),
        ]
    )


def _xpk(topology: Topology, name: str, given: Sequence[str]) -> str:
    train = _train(given, f"/shared/runs/{name}")
    return (
        f"xpk workload create --cluster=CLUSTER --workload={_slug(name)} --tpu-type={_type(topology)} "
        f"--num-slices={topology.slices} --docker-image=IMAGE --command={shlex.quote(train)}"
    )


def _type(topology: Topology) -> str:
    torus = topology.size or TPUS[topology.target].partition(":")[2]
    chips = chips_of(torus)
    return _TYPES[topology.target].format(chips=chips, cores=2 * chips, torus=torus)


def _name(given: Sequence[str]) -> str:
    """The recipe's name, for directories."""
    recipe = next(argument for argument in reversed(given) if argument.startswith("--config="))
    return Path(recipe.partition("=")[2]).stem


def _slug(name: str) -> str:
    """As cloud resources may be called: at most 40 lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-")
