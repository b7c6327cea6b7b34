"""Writes a page about runs, side by side: `python eval/report.py runs/a runs/b --out=report.html`.

The same as `anchorjax report`.
"""

import sys

from anchorjax.cli import report

if __name__ == "__main__":
    sys.exit(report.main(sys.argv[1:], "python eval/report.py"))
