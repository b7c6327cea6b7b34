"""The baseline of llama2_7b_64k_anchor.py with intra-document attention: the same in all else."""

from configs import llama2_7b_64k_anchor


def get_config():
    config = llama2_7b_64k_anchor.get_config()
    config.data.mask = "intra_doc"
    return config
