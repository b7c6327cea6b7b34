"""The baseline of llama2_7b_64k_anchor.py with full attention: the same in all else."""

from configs import llama2_7b_64k_anchor


def get_config():
    config = llama2_7b_64k_anchor.get_config()
    config.data.mask = "full"
    return config
