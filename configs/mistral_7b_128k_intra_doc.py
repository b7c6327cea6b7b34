"""The baseline of mistral_7b_128k_anchor.py with intra-document attention: the same in all else."""

from configs import mistral_7b_128k_anchor


def get_config():
    config = mistral_7b_128k_anchor.get_config()
    config.data.mask = "intra_doc"
    return config
