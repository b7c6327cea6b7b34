"""Entropy of attention by layer, and biased rounding: `python eval/attention_weights.py --hf DIR --tokens=4096`."""

import sys

from anchorjax.experiments.attention_weights.command import main

if __name__ == "__main__":
    sys.exit(main())
