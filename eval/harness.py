"""lm-eval's tasks (MMLU, HellaSwag, its RULER, LongBench, your own): `python eval/harness.py --hf DIR --tasks=mmlu`."""

import sys

from anchorjax.evaluation.tasks.harness import main

if __name__ == "__main__":
    sys.exit(main())
