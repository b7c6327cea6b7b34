"""Memory of preparation: that of a shard under way, whatever the files' size."""

import gzip
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

MEMORY = """
import sys, threading, time
from anchorjax.data.store import preparing
from tests.data.preparing import data_config

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

most, ended = [0], threading.Event()
def watch():
    while not ended.wait(0.01):
        most[0] = max(most[0], anonymous())
config = data_config(source=f"jsonl:{sys.argv[1]}", store=sys.argv[2], bad_rows="skip")
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
index = preparing.prepare(config)["train"]
ended.set()
print(before, most[0], index.num_tokens, sum(index.bad_rows.values()))
"""


def memory_of(path, store) -> tuple[int, int, int]:
    """Megabytes beyond what imports take, tokens, bad rows."""
    command = [sys.executable, "-c", MEMORY, str(path), str(store)]
    before, most, tokens, bad = map(int, subprocess.check_output(command, cwd=ROOT, text=True).split())
    return (most - before) // 1024, tokens, bad


def test_a_line_of_200_megabytes_takes_no_more_memory_than_is_allowed(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wb", compresslevel=1) as file:
        for i in range(400):
            file.write(b'{"text": "short %d"}\n' % i)
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "the last"}\n')
    megabytes, _, bad = memory_of(tmp_path / "x.jsonl.gz", tmp_path / "store")
    assert bad == 1 and megabytes < 60  # 16 of the row, and its copies


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """300 MB of text that compresses badly enough to be read like text."""
    from anchorjax.data.sources.public_domain import CORPUS

    lines = gzip.decompress(CORPUS.read_bytes())
    used = []
    for name, times in (("small", 2), ("large", 36)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wb", compresslevel=1) as file:
            for _ in range(times):
                file.write(lines)
        megabytes, tokens, _ = memory_of(tmp_path / f"{name}.jsonl.gz", tmp_path / name)
        assert tokens > 7.5e6 * times
        used.append(megabytes)
    assert used[1] < 64 and used[1] < used[0] + 16, used
