"""A small Llama on Jane Austen and the King James Bible, in six minutes on two CPU cores.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import common


def get_config():
    config = common.base()
    config.train.steps = 300
    return config
