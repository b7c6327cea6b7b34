"""Trains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same as `anchorjax train`. Exit codes: 0 done, 1 failed, 2 bad configuration, 75 stopped by SIGTERM or Ctrl-C after
saving (run again to resume).
"""

import sys

from anchorjax.cli import train


def main() -> int:
    return train.main(sys.argv[1:], "python train.py")


if __name__ == "__main__":
    sys.exit(main())
