"""How far rounding moves attention when positions are shifted: `python eval/rope_precision.py --hf DIR --samples=5`."""

import sys

from anchorjax.experiments.rope_precision.command import main

if __name__ == "__main__":
    sys.exit(main())
