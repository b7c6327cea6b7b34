"""What a run says of itself: one live line, metrics.jsonl, TensorBoard events and rates."""

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path

import tqdm

from anchorjax.config import Config
from anchorjax.files import write_atomically
from anchorjax.models import flops

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Counts:
    """What a stretch of training did."""

    seconds: float = 0.0
    steps: int = 0
    tokens: float = 0.0
    pairs: float = 0.0
    causal_pairs: float = 0.0

    def __add__(self, other: "_Counts") -> "_Counts":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return _Counts(*(a + b for a, b in zip(mine, theirs, strict=True)))


class MeanLoss:
    """The mean loss of the steps since the last multiple of `log_every`, weighted by their targets.

    So it is the loss in nats per target over all targets of these steps. Which steps they are does not depend on which
    lines were written: where a run is resumed at a multiple of `log_every`, its later means are bitwise those of a run
    that was not interrupted. Where it is resumed elsewhere, the first mean is that of the steps since then, as the sum
    is no part of a checkpoint.
    """

    def __init__(self, log_every: int):
        self._log_every = log_every
        self._nats = self._targets = 0.0

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Counts step `step`, from 1 on, by its fp32 "loss" and "targets"."""
        if (step - 1) % self._log_every == 0:
            self._nats = self._targets = 0.0
        # Products of two fp32 numbers are exact in float64: the mean of one step is that step's loss, bit for bit.
        self._nats += metrics["loss"] * metrics["targets"]
        self._targets += metrics["targets"]

    def read(self) -> float:
        """Returns 0 where no step had a target, as the loss of such a step is."""
        return self._nats / max(self._targets, 1.0)


class Rates:
    """Turns the steps between two log lines into tokens/s, FLOP/s and MFU, and adds up the run.

    The clock starts when the first step ends, so that compilation is not counted as training speed.
    """

    def __init__(self, config: Config):
        self._config = config
        self._peak = flops.peak_flops(config.train.peak_tflops)
        self._since = None
        self._now, self._all = _Counts(), _Counts()

    def add(self, metrics: dict[str, float]) -> None:
        """Counts one finished step."""
        if self._since is None:
            self._since = time.perf_counter()
            return
        data = self._config.data
        causal = data.batch_size * flops.causal_pairs(data.seq_len)
        self._now += _Counts(0.0, 1, metrics["tokens"], metrics["live_pairs"], causal)

    def read(self) -> dict[str, float]:
        """Rates since the last call; empty before the second step."""
        if not self._now.steps:
            return {}
        now = time.perf_counter()
        self._now.seconds, self._since = now - self._since, now
        self._all, counts, self._now = self._all + self._now, self._now, _Counts()
        return self._rates(counts)

    def totals(self) -> dict[str, float]:
        """Rates and counts of all that `read` has seen in this process."""
        if not self._all.steps:
            return {}
        return {"tokens": int(self._all.tokens), "seconds": self._all.seconds, **self._rates(self._all)}

    def _rates(self, counts: _Counts) -> dict[str, float]:
        config = self._config

        def flop_rate(pairs):
            return flops.train_flops(config.model, counts.tokens, pairs, config.is_frozen) / counts.seconds

        live, causal = flop_rate(counts.pairs), flop_rate(counts.causal_pairs)
        if config.focus.chunk:
            rows = counts.steps * config.data.batch_size
            live = rows * flops.focus_train_flops(config.model, config.focus, config.data.seq_len) / counts.seconds
        rates = {
            "tokens_per_s": counts.tokens / counts.seconds,
            "step_s": counts.seconds / counts.steps,
            "tflops": live / 1e12,
            "tflops_causal_equivalent": causal / 1e12,
        }
        if self._peak:
            rates |= {"mfu": live / self._peak, "mfu_causal_equivalent": causal / self._peak}
        return rates

    def pause(self, seconds: float) -> None:
        """Takes time that was not training (evaluation, waiting for a save) out of the next rates."""
        if self._since is not None:
            self._since += seconds


class Writer:
    """metrics.jsonl and TensorBoard. A resumed run first drops the lines of what it will repeat.

    That is every line after `first_step`, and the evaluation at `steps`, which an unfinished run still has to make.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int, tensorboard: bool):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if not _comes_again(line, first_step, steps)]
        write_atomically(self._path, "".join(kept))
        self._file = open(self._path, "a")  # noqa: SIM115 - open for the run
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # imports torch, if that is installed: 1.4 s

            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, kind: str, values: dict) -> None:
        """One line, flushed; `kind` is "train" or "eval". TensorBoard gets the numbers among the values."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._events and isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._events:
            self._events.close()


def _lines(path: Path) -> list[str]:
    """Whole lines that can be read; a kill may have cut the last, a loss of power may have ruined any."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            log.warning("a line of %s cannot be read and is dropped: %r", path, line[:80])
            continue
        if line.endswith("\n"):
            lines.append(line)
    return lines


def _comes_again(line: str, first_step: int, steps: int) -> bool:
    content = json.loads(line)
    return content["step"] > first_step or (content["kind"] == "eval" and content["step"] == steps)


class Progress:
    """One live line on a terminal; a plain line per logged step elsewhere."""

    def __init__(self, steps: int, first_step: int, quiet: bool = False):
        """`quiet` prints nothing: another process of the job does."""
        self._steps, self._first, self._quiet = steps, first_step, quiet
        self._started = None
        live = sys.stderr.isatty() and not quiet
        self._bar = tqdm.tqdm(
            total=steps, initial=first_step, disable=not live, unit="step", dynamic_ncols=True, leave=False
        )
        self._live = live

    def step(self, step: int) -> None:
        self._started = self._started or time.perf_counter()
        self._bar.update(1)

    def show(self, step: int, loss: float, tokens_per_s: float | None) -> None:
        rate = f"{tokens_per_s:,.0f} tokens/s" if tokens_per_s else "compiled"
        if self._live:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate}")
            return
        self.say(f"step {step}/{self._steps}  loss {loss:.4f}  {rate}{self._eta(step)}")

    def _eta(self, step: int) -> str:
        done = step - self._first - 1
        if done <= 0 or self._started is None:
            return ""
        left = (time.perf_counter() - self._started) / done * (self._steps - step)
        return f"  ETA {int(left) // 60}:{int(left) % 60:02d}"

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        if self._quiet:
            return
        with tqdm.tqdm.external_write_mode(file=sys.stderr):
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
