"""Perplexity of what needs a long context: `python eval/longppl.py --hf DIR --text books.jsonl --lengths=32K`."""

import sys

from anchorjax.evaluation.tasks.longppl import main

if __name__ == "__main__":
    sys.exit(main())
