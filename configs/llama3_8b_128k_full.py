"""The baseline of llama3_8b_128k_anchor.py with full attention: the same in all else."""

from configs import llama3_8b_128k_anchor


def get_config():
    config = llama3_8b_128k_anchor.get_config()
    config.data.mask = "full"
    return config
