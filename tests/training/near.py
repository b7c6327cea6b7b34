"""`python near.py FOLDER train.py-arguments...`: train.py to which near://NAME is FOLDER/NAME, as a bucket is."""

import sys

from etils.epath import register

import train
from anchorjax.cli import train as command


def main() -> int:
    folder, *arguments = sys.argv[1:]
    register._URI_PREFIXES_TO_CLS["near://"] = lambda address: register.make_path(
        f"{folder}/{address.removeprefix('near://')}"
    )
    command.BUCKETS += ("near://",)
    sys.argv = ["train.py", *arguments]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
