"""`python -m anchorjax train ...`: the same as `anchorjax train ...`."""

import sys

from anchorjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
