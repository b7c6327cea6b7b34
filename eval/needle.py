"""Needle in a haystack by depth and length: `python eval/needle.py --hf DIR --lengths=1K,2K,4K`."""

import sys

from anchorjax.evaluation.tasks.needle import main

if __name__ == "__main__":
    sys.exit(main())
