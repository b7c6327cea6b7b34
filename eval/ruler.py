"""RULER: 13 tasks of retrieval, tracking and counting by length: `python eval/ruler.py --hf DIR --lengths=4K,8K`."""

import sys

from anchorjax.evaluation.tasks.ruler.task import main

if __name__ == "__main__":
    sys.exit(main())
