"""The baseline of mistral_7b_128k_anchor with full attention, and the same otherwise."""

from anchorjax.config import recipe


def get_config():
    config = recipe("mistral_7b_128k_anchor")
    config.data.mask = "full"
    return config
