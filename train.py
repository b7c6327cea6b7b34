"""Trains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

Exit codes: 0 done, 1 failed, 2 bad configuration, 75 stopped by SIGTERM after saving (run again to resume).
"""

import shlex
import sys

from anchorjax.cli import command_line
from anchorjax.errors import UserError


def main() -> int:
    try:
        config, workdir = command_line.parse(sys.argv)
        from anchorjax.training import loop  # jax takes a second to import: a typo is found before that

        return loop.run(config, workdir, shlex.join(["python", *sys.argv]))
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
