"""The baseline of llama2_7b_64k_anchor with intra-document attention, and the same otherwise."""

from anchorjax.config import recipe


def get_config():
    config = recipe("llama2_7b_64k_anchor")
    config.data.mask = "intra_doc"
    return config
