"""What benchmarks that train share: the project's own commands, how fast a run was, and what is measured once."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from anchorjax.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


def run(config: str, program: list[str], settings: dict[str, Any], **options: Any) -> None:
    """`python PROGRAM --config=CONFIG` with overrides; `options` of `subprocess.run`. Raises if it fails."""
    overrides = (f"--config.{name}={value}" for name, value in settings.items())
    subprocess.run([sys.executable, *program, f"--config={config}", *overrides], cwd=ROOT, check=True, **options)


def step_seconds(workdir: Path) -> float:
    """The median of what metrics.jsonl says, which leaves out steps that compile."""
    with (workdir / "metrics.jsonl").open() as lines:
        return statistics.median(row["step_s"] for row in map(json.loads, lines) if "step_s" in row)


def kept(file: Path, measure: Callable[[], Any]) -> Any:
    """What was measured before, or is now and will not be again: JSON."""
    if not file.exists():
        write_atomically(file, json.dumps(measure()))
    return json.loads(file.read_text())


def write_documents(file: Path, rows: Iterable[dict]) -> None:
    """JSON lines, unless they are there: preparing goes on only with the same file."""
    if not file.exists():
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
