"""The baseline of llama3_8b_128k_anchor with intra-document attention, and the same otherwise."""

from anchorjax.config import recipe


def get_config():
    config = recipe("llama3_8b_128k_anchor")
    config.data.mask = "intra_doc"
    return config
