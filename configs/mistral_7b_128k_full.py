"""The baseline of mistral_7b_128k_anchor.py with full attention: the same in all else."""

from configs import mistral_7b_128k_anchor


def get_config():
    config = mistral_7b_128k_anchor.get_config()
    config.data.mask = "full"
    return config
