"""`python -m anchorjax.plan ...`: the same as `anchorjax plan ...`."""

import sys

from anchorjax.cli import plan

if __name__ == "__main__":
    sys.exit(plan.main(sys.argv[1:]))
