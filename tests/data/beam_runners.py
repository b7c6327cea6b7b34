"""Runners of Beam that behave as clusters do, for tests: `--runner=tests.data.beam_runners.Elsewhere`."""

import os
import pathlib
import threading
import time

from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState


class Elsewhere(PipelineRunner):
    """Says that all is done, and has written nothing here."""

    def run_pipeline(self, pipeline, options):
        return PipelineResult(PipelineState.DONE)


class Unreachable(PipelineRunner):
    def run_pipeline(self, pipeline, options):
        raise RuntimeError("some words of a cluster\nno route to host")


class Failing(PipelineRunner):
    def run_pipeline(self, pipeline, options):
        return Result(PipelineState.FAILED)


class Endless(PipelineRunner):
    """Leaves the files `begun` and, when its job is cancelled, `cancelled` in the directory $BEAM_RUNNER_FILES."""

    def run_pipeline(self, pipeline, options):
        return Result(None)


class Slow(PipelineRunner):
    """Takes a while to answer that a job was begun; then as `Endless`."""

    def run_pipeline(self, pipeline, options):
        result = Result(None)
        result.leave("begun")
        time.sleep(3)
        return result


class Twice(FnApiRunner):
    """Makes each piece two more times, as runners do that try again."""

    def __init__(self):
        super().__init__(bundle_repeat=2)


class Result(PipelineResult):
    def wait_until_finish(self, duration=None):
        if self.state is None:
            self.leave("begun")
            threading.Event().wait()
        return self.state

    @property
    def state(self):
        return self._state

    def cancel(self):
        self.leave("cancelled")

    def leave(self, name):
        (pathlib.Path(os.environ["BEAM_RUNNER_FILES"]) / name).touch()
