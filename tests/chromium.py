"""Looks at a page in headless Chromium: what it shows, what it complains of, and how wide it gets."""

import dataclasses
import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import html as pages

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(PATH is None, reason=f"no browser here: none of {', '.join(NAMES)} is in PATH")
# It neither phones home nor shares a profile with anybody.
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_OPTIONS += ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")
_OPTIONS += ("--hide-scrollbars", "--enable-logging=stderr")


@dataclasses.dataclass(frozen=True)
class Seen:
    """uint8 [height, width, 3], and what the browser's console says: of what a page may not load, for one."""

    pixels: np.ndarray
    console: list[str]


def look(page: Path, folder: Path, width: int = 1100, height: int = 3000) -> Seen:
    shot = folder / "screenshot.png"
    done = _run(folder, f"--window-size={width},{height}", f"--screenshot={shot}", page.resolve().as_uri())
    return Seen(pages.decode(shot.read_bytes()), [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@dataclasses.dataclass(frozen=True)
class Sizes:
    """In a window of a given width, in pixels.

    Attributes:
      window: its width, without a bar to scroll.
      needed: the page's width: more than the window's would have to be scrolled to the side.
      tallest_head: height of a table's head: one that is broken letter by letter is tall.
    """

    window: int
    needed: int
    tallest_head: int


def measure(page: Path, folder: Path, width: int) -> Sizes:
    frame = folder / "frame.html"
    content = html.escape(page.read_text(), quote=True)
    script = (
        "d = f.contentDocument.documentElement; heads = [...d.querySelectorAll('th')].map(head => head.offsetHeight);"
        "document.title = [d.clientWidth, d.scrollWidth, Math.max(0, ...heads)].join(' ')"
    )
    frame.write_text(
        "<!DOCTYPE html><meta charset=utf-8><title></title>"
        f'<iframe id=f style="border:0;width:{width}px;height:800px" onload="{script}" srcdoc="{content}"></iframe>'
    )
    done = _run(folder, "--dump-dom", frame.resolve().as_uri())
    found = re.search("<title>([0-9]+) ([0-9]+) ([0-9]+)</title>", done.stdout)
    assert found, done.stderr
    return Sizes(*map(int, found.groups()))


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [PATH, *_OPTIONS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=True)
