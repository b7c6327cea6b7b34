"""anchorjax: long-context training with AnchorAttention in JAX."""

__version__ = "0.1.0"
