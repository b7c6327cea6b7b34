"""Names for recipes that say `from configs import common`; new ones take them from `anchorjax.config`."""

from typing import TYPE_CHECKING

from anchorjax import config
from anchorjax.config import base, defaults
from anchorjax.models import families

if TYPE_CHECKING:
    from ml_collections import ConfigDict

__all__ = ["base", "defaults", "paper"]


def paper(size: str, init_from: str, *, seq_len: int, theta: float) -> "ConfigDict":
    """`anchorjax.config.paper` for a published model of anchorjax/models/families."""
    model, _ = families.published(size)
    return config.paper(model, init_from, seq_len=seq_len, theta=theta)
