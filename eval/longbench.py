"""LongBench from local files: `python eval/longbench.py --hf DIR --data=LONGBENCH`."""

import sys

from anchorjax.evaluation.tasks.longbench.task import main

if __name__ == "__main__":
    sys.exit(main())
