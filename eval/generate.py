"""Generates text: `python eval/generate.py --hf DIR --prompt "Once upon a time"`.

The same as `anchorjax generate`.
"""

import sys

from anchorjax.cli import generate

if __name__ == "__main__":
    sys.exit(generate.main(sys.argv[1:], "python eval/generate.py"))
