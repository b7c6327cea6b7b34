"""The training job: `run` sets up or resumes, loops, evaluates and sums up. No mathematics here."""

import contextlib
import dataclasses
import itertools
import json
import math
import operator
import os
import signal
import time
from pathlib import Path

import jax

from anchorjax import data, processes
from anchorjax.checkpoints.orbax import Checkpoints, DataPosition
from anchorjax.config import KEYS, Config
from anchorjax.data.rows import contexts, window_schedule
from anchorjax.data.store.tokens import TokenStore
from anchorjax.errors import DONE, PREEMPTED, ConfigError, TrainingError, WorkdirError
from anchorjax.sharding import rows_here, shard_batch
from anchorjax.training import objectives, trainable
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.metrics import MeanLoss, Progress, Rates, Writer
from anchorjax.training.probe import probe_attention
from anchorjax.training.setup import Setup
from anchorjax.training.state import TrainState
from anchorjax.training.workdir import Workdir
from anchorjax.types import Batch


def run(config: Config, workdir: str | Path, command: str = "") -> int:
    """Trains to `config.train.steps`, resuming from whatever the directory holds.

    Args:
      command: what was typed, for the run's commands.json.

    Returns:
      DONE, or PREEMPTED after a SIGTERM or Ctrl-C: the state is saved and the same command goes on from it.

    Raises:
      UsageError: the job's processes differ in configuration, code, text or tokenizer.
      PeerError: another process of the job raised an error.
      ConfigError: the configuration does not fit the devices, the tokenizer or the checkpoint in init_from.
      WeightsError: that checkpoint cannot be read, or is not supported.
      DataError: the token store in data.store is damaged, or none.
      WorkdirError: the directory holds another run, other data, or a running job.
      CheckpointError: its checkpoints cannot be read.
      LeakageError: attention does not keep the mask of the first batch, forward or backward.
      TrainingError: the loss is not finite.
    """
    # First: a SIGTERM during compilation is answered at the first step, in a job of several processes at the second.
    stop = StopSignal()
    with contextlib.ExitStack() as stack:
        directory = processes.together(lambda: stack.enter_context(Workdir(workdir)))  # closed if another process fails
        setup = processes.together(lambda: Setup.make(config, directory.path))
        if processes.count() > 1:
            processes.same(processes.together(lambda: _facts(setup)))
        stack.enter_context(jax.set_mesh(setup.mesh))
        processes.on_main(lambda: directory.open(setup.saved))  # before text is tokenized
        stores = processes.main_first(lambda: _load_stores(setup))
        processes.same({f"the {split} text": store.fingerprint for split, store in stores.items()})
        processes.on_main(lambda: directory.begin(command))
        if processes.count() > 1:
            mark = processes.value_of_main(directory.mark)
            processes.together(lambda: directory.check_mark(mark))
        return Job(setup, stores, directory, stop).run()


def _load_stores(setup: Setup) -> dict[str, TokenStore]:
    section, tokenizer, size = setup.config.data, setup.store_tokenizer, setup.config.model.vocab_size
    stores = {split: data.load_store(section, split, tokenizer) for split in ("train", "validation")}
    for store in stores.values():
        if (needed := store.vocab_size) > size:  # special tokens of conversations, which no text has
            raise ConfigError("model.vocab_size", size, f"data.store={section.store!r} has tokens up to {needed - 1}")
    return stores


def _facts(setup: Setup) -> dict[str, str]:
    """What all processes of a job must have in common before they read anything."""
    return {
        **{f"config.{name}": json.dumps(operator.attrgetter(name)(setup.saved)) for name in KEYS},
        "the tokenizer": setup.store_tokenizer.name,
    }


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop polls; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.received: str | None = None  # the signal's name
        self._signals = processes.Signals()
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, self._set)

    def _set(self, signum, frame) -> None:
        if signum == signal.SIGINT and self.received is None:
            # os.write, as a handler may come in the middle of a print.
            os.write(2, b"\nsaving after this step; Ctrl-C again to stop at once\n")
        self.received = signal.Signals(signum).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> str | None:
        """The signal that any process of the job received; all processes must ask at the same place."""
        signal_of_all = self._signals.agreed(self.received)
        self.received = signal_of_all or self.received
        return signal_of_all


class Job:
    """One process's part of a run, from the first step to the summary."""

    def __init__(self, setup: Setup, stores: dict[str, TokenStore], directory: Workdir, stop: StopSignal):
        self.setup, self.config, self.directory, self.stop = setup, setup.config, directory, stop
        self.store, self.held_out = stores["train"], stores["validation"]
        self.tokenizer = setup.tokenizer
        # Of the first epoch: an objective's weights are the same in all of a run, and when it is resumed.
        packer = data.row_packer(self.store, self.tokenizer, self.config.data, self.config.seed, self.config.focus)
        self.packing, self.targets_K = packer.report(), packer.targets_by_context()
        if self.config.focus.chunk:  # refuses held-out documents shorter than a row before the first step
            data.row_packer(self.held_out, self.tokenizer, self.config.data, None, self.config.focus).plan(0)
        steps = dataclasses.replace(setup.steps, objective=objectives.make(self.config, self.targets_K))
        self.checkpoints = Checkpoints(directory.root, keep=self.config.checkpoint.keep)
        self.watchdog = processes.Watchdog(self.config.train.timeout_s)
        with self.watchdog:
            self.state, self.first_step = self._start()
        self.train_step = jax.jit(steps.train, donate_argnums=0, compiler_options=setup.compiler_options)
        self.evaluate = Evaluator(setup.steps, self.tokenizer.token_bytes_V, setup.mesh)
        self.writer = None  # process 0's, made when there is something to write
        self.progress = Progress(self.config.train.steps, self.first_step, quiet=not processes.is_main())
        self._rows = rows_here(setup.mesh, self.config.data.batch_size)
        self.rates, self.mean_loss = Rates(self.config), MeanLoss(self.config.train.log_every)

    def _start(self) -> tuple[TrainState, int]:
        restored = self.checkpoints.restore_latest(self.setup.abstract_state())
        if restored is None:
            state = processes.together(self.setup.first_state)
            # Last, so that what is resumed has begun.
            processes.on_main(lambda: self.setup.keep_source(self.directory.path))
            return state, 0
        state, meta = restored
        position = DataPosition(**meta["data"])
        self._refuse_other_text(position)
        return state, position.next_row // self.config.data.batch_size

    def _refuse_other_text(self, position: DataPosition) -> None:
        splits = {
            "train": (self.store.fingerprint, position.fingerprint),
            "validation": (self.held_out.fingerprint, position.held_out_fingerprint),
        }
        config = self.config.data
        name = f"data.store={config.store!r}" if config.store else f"data.source={config.source!r}"
        for split, (now, then) in splits.items():
            if now != then:
                raise WorkdirError(
                    f"{name} no longer holds the {split} text of "
                    f"{self.directory.name} (fingerprint {now[:12]}, then {then[:12]})"
                )

    def run(self) -> int:
        self._announce()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.watchdog)
            stack.callback(self.progress.close)
            stack.callback(self.checkpoints.close)
            steps = self.config.train.steps
            summary = processes.value_of_main(lambda: self.directory.read_json("summary.json"))
            if summary and self.first_step == steps:
                self.progress.say("this run is finished; give a new one its own --workdir")
                self._show(summary)
                return DONE
            if processes.is_main():
                self.writer = Writer(self.directory.path, self.first_step, steps, self.config.train.tensorboard)
                stack.callback(self.writer.close)
            finished = self._train() and self._sum_up()
            if not finished:
                where = self.directory.name
                self.progress.say(f"stopped by {self.stop.received}; saved in {where}, run the same command to resume")
        return DONE if finished else PREEMPTED

    def _announce(self) -> None:
        parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        count = sum(x.size for x in jax.tree.leaves(trainable.of(self.state.params)))
        trained = f", of which {count:,} are trained" if count < parameters else ""
        attention = self.setup.steps.spec.attention
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.setup.mesh.shape.items())
        self.progress.say(
            f"{parameters:,} parameters{trained}, {self.config.model.compute_dtype}, "
            f"attention {attention.implementation} in tiles of {attention.q_tile} x {attention.kv_tile}, "
            f"mask {self.config.data.mask} on {jax.device_count()} {jax.devices()[0].device_kind} ({mesh})\n"
            f"{self.store.num_tokens:,} tokens in {self.store.num_documents:,} documents"
        )
        rows = self.config.data
        kind = "windows of one document as" if self.config.focus.chunk else f"{rows.packing} of"
        self.progress.say(f"{kind} rows of {rows.seq_len:,}: {self.packing}")
        self.progress.say(contexts.describe(self.targets_K))
        if rows.window_schedule != "none":
            self.progress.say(
                f"until step {rows.window_steps:,} they see no further than a window ({window_schedule.describe(rows)})"
            )
        if self.first_step:
            self.progress.say(f"resuming after step {self.first_step}")

    def _train(self) -> bool:
        """Runs the remaining steps; False if a signal ended it. The state is saved in both cases."""
        steps, config = self.config.train.steps, self.config
        batches = data.train_batches(
            self.store,
            self.tokenizer,
            config.data,
            seed=config.seed,
            start_step=self.first_step,
            rows=self._rows,
            layout=self.setup.layout,
            focus=config.focus,
        )
        running = None  # the step that the device is working on: (number, its metrics)
        with contextlib.closing(batches):
            for step in self.watchdog.each(range(self.first_step + 1, steps + 1)):
                batch = shard_batch(next(batches), self.setup.mesh, config.data.batch_size)
                if step == self.first_step + 1:
                    self._probe(batch)
                self.state, metrics = self.train_step(self.state, batch)
                self._read(running)  # the step before, while this one runs
                running = (step, metrics)
                save = step % config.checkpoint.every == 0 or step == steps
                if save:
                    self.checkpoints.wait()  # for the save before, so that no step is reported two saves ahead
                if config.eval.every and step % config.eval.every == 0 and step != steps:
                    self._read(running)
                    running = None
                    self._evaluate(step)
                stopped = self.stop.agreed()  # asked once: a SIGTERM may come at any line, the evaluation's too
                if save or stopped:
                    self._read(running)
                    running = None
                    self._save(step)
                if stopped and step != steps:
                    self.checkpoints.wait()
                    return False
        self.checkpoints.wait()
        return True

    def _probe(self, batch: Batch) -> None:
        """A mask that leaks ruins a run without a trace in its loss curve: it is looked at before the first step.

        On one micro-batch, as in training: a whole batch may be more than fits.
        """
        steps = self.setup.steps
        tokens = probe_attention(steps.first_part(batch), steps.spec)
        self.progress.say(
            f"attention keeps its mask, forward and backward: {tokens} tokens changed, each seen where allowed and "
            "nowhere else"
        )

    def _read(self, running: tuple[int, dict] | None) -> None:
        """Waits for a step's metrics, checks them and logs them when due.

        A line's loss is a mean (metrics.MeanLoss), and its rates are those since the line before. The gradient's norm
        is that of the step itself, since clipping looks at each step's own and a mean would hide a spike. So is
        the window.
        """
        if running is None:
            return
        step, metrics = running
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise TrainingError(
                    f"{name} is {metrics[name]} at step {step}; nothing after the last checkpoint is kept. "
                    "Lower optimizer.learning_rate or look at the data of that step"
                )
        self.rates.add(metrics)
        self.mean_loss.add(step, metrics)
        self.progress.step(step)
        if step % self.config.train.log_every == 0 or step in (self.first_step + 1, self.config.train.steps):
            rates = self.rates.read()
            del metrics["live_pairs"]
            metrics["loss"] = self.mean_loss.read()
            if self.config.data.window_schedule != "none":
                metrics["window"] = window_schedule.window(step - 1, self.config.data) or self.config.data.seq_len
            self._write(step, "train", {**metrics, **rates})
            self.progress.show(step, metrics["loss"], rates.get("tokens_per_s"))

    def _write(self, step: int, kind: str, values: dict) -> None:
        if self.writer:
            self.writer.write(step, kind, values)

    def _evaluate(self, step: int) -> None:
        started = time.perf_counter()
        result = self._held_out_loss(self.config.eval.rows)
        if result is None:
            return
        self._write(step, "eval", result)
        self.progress.say(
            f"step {step}  held-out loss {result['loss']:.4f}, {result['bits_per_byte']:.4f} bits per byte "
            f"({result['targets']:,} targets)"
        )
        self.rates.pause(time.perf_counter() - started)

    def _save(self, step: int) -> None:
        self.watchdog.step()
        started = time.perf_counter()
        next_row = step * self.config.data.batch_size
        position = DataPosition(next_row, self.store.fingerprint, self.held_out.fingerprint)
        self.directory.sync()
        self.checkpoints.save(step, self.state, self.config.to_dict(), position)
        self.rates.pause(time.perf_counter() - started)

    def _held_out_loss(self, max_rows: int) -> dict | None:
        """None if a signal came in between: the grace time is for the save."""
        if self.stop.agreed():
            return None
        order = self._rows, self.setup.layout, self.config.focus
        rows = data.eval_rows(self.held_out, self.tokenizer, self.config.data, max_rows, *order)
        rows = self.watchdog.each(rows)
        unless_stopped = itertools.takewhile(lambda _: not self.stop.agreed(), rows)
        # The first batch is taken in any case: an evaluation of nothing is an error.
        result = self.evaluate(self.state.params, itertools.chain(itertools.islice(rows, 1), unless_stopped))
        return None if self.stop.agreed() else result

    def _sum_up(self) -> bool:
        """Evaluates on the held-out text, writes summary.json and prints it; False if a signal came."""
        result = self._held_out_loss(self.config.eval.final_rows)
        if result is None:
            return False
        step = self.config.train.steps
        self._write(step, "eval", result)
        summary = {
            "step": step,
            "validation_loss": result["loss"],
            "bits_per_byte": result["bits_per_byte"],
            "validation_targets": result["targets"],
            "first_step": self.first_step + 1,  # where this process began: the rates below count from there
            **self.rates.totals(),
        }
        processes.on_main(lambda: self.directory.write_json("summary.json", summary))
        self._show(summary)
        return True

    def _show(self, summary: dict) -> None:
        self.progress.close()
        if not processes.is_main():
            return
        print(_report(summary, self.directory), flush=True)


def _report(summary: dict, directory: Workdir) -> str:
    lines = [
        f"finished step {summary['step']}",
        f"validation loss  {summary['validation_loss']:.4f} nats per target over "
        f"{summary['validation_targets']:,} targets",
        f"bits per byte    {summary['bits_per_byte']:.4f}",
    ]
    since = f" (resumed at step {summary['first_step']})" if summary["first_step"] > 1 else ""
    if "tokens_per_s" in summary:
        lines += [
            f"training         {summary['tokens']:,} tokens in {summary['seconds']:.0f} s, "
            f"{summary['tokens_per_s']:,.0f} tokens/s{since}",
            f"arithmetic       {summary['tflops']:.4f} TFLOP/s by live pairs "
            f"({summary['tflops_causal_equivalent']:.4f} as if causal)",
        ]
    if "mfu" in summary:
        lines.append(
            f"MFU              {summary['mfu']:.1%} by live pairs ({summary['mfu_causal_equivalent']:.1%} as if causal)"
        )
    names = ("checkpoints/", "metrics.jsonl", "tensorboard/", "config.json", "summary.json")
    there = (name for name in names if any((place / name).exists() for place in (directory.path, directory.root)))
    return "\n".join([*lines, f"outputs          {directory.name}/: {', '.join(there)}"])
