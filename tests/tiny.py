"""A model of 29 thousand weights on short rows of the shipped corpus: what most tests train."""

from typing import Any

from anchorjax.config import Config, base, resolve

TINY = {
    "model": {
        "family": "llama",
        "num_layers": 2,
        "d_model": 32,
        "d_ff": 64,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "norm_eps": 1e-5,
        "compute_dtype": "float32",
    },
    "rope": {"theta": 10_000.0, "scaling": "none"},
    "attention": {"q_tile": 32, "kv_tile": 32},
    "data": {"tokenizer": "bytes", "seq_len": 64, "batch_size": 2, "prefetch": 1},
    "train": {"steps": 8, "loss_chunk": 32, "log_every": 1, "tensorboard": False},
    "eval": {"every": 0, "rows": 2, "final_rows": 2},
    "checkpoint": {"every": 4},
}


def mapping(**overrides: Any) -> dict[str, Any]:
    """The tiny configuration as nested dicts; `section__key=value` (or `seed=value`) changes one."""
    config = base().to_dict()
    for section, values in TINY.items():
        config[section] |= values
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


def config(**overrides: Any) -> Config:
    return resolve(mapping(**overrides))


def write_file(path, **overrides: Any) -> None:
    """A config file for `train.py --config`."""
    text = "from anchorjax.config import base\n\n\ndef get_config():\n    config = base()\n"
    path.write_text(f"{text}    config.update({mapping(**overrides)!r})\n    return config\n")
