"""Every key that exists, once, with its default and reason. Recipes start from `base()` and change fields.

    from configs import common
    def get_config():
        config = common.base()
        config.init_from = "checkpoints/Llama-3.1-8B"
        config.rope.theta = 1e7
        return config

Any key can be changed on the command line: `--config.optimizer.learning_rate=1e-3`.
What each value may be is checked in anchorjax/config.py before anything is compiled or written.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from anchorjax.models import families

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def base() -> "ConfigDict":
    from ml_collections import ConfigDict  # only recipes need it: `defaults` is read where it is not installed

    return ConfigDict(dict(defaults())).lock()


def defaults() -> Mapping[str, Any]:
    """The keys and their defaults as plain dictionaries."""
    return MappingProxyType(
        {
            "seed": 0,  # initial weights and data order; the same seed gives the same run, bit for bit
            "init_from": "",  # a Hugging Face directory, or one written by anchorjax.cli.convert; empty: random weights
            "model": {
                "family": "",  # a module in anchorjax/models/families: how checkpoints name the weights; empty: llama
                # Sizes: 0 takes the checkpoint's. Without init_from they must be given.
                "num_layers": 0,
                "d_model": 0,  # D
                "d_ff": 0,  # F; about 8/3 D, as SwiGLU has three matrices where a plain MLP has two
                "num_heads": 0,  # N
                "num_kv_heads": 0,  # K; fewer than N is grouped-query attention
                "head_dim": 0,  # H
                "vocab_size": 0,  # V; without init_from the tokenizer's, rounded up to 64 so that it shards evenly
                "norm_eps": 0.0,  # 0 is the checkpoint's, or 1e-5
                "tie_embeddings": True,  # one matrix for input and output: half the parameters of a small model
                # What families differ in.
                "activation": "silu",  # of the gate; Gemma: gelu_tanh
                "qkv_bias": False,  # Qwen 2
                "qk_norm": False,  # RMSNorm of every query and key head (Qwen 3, Gemma 3)
                "post_norms": False,  # norms behind attention and feed-forward too (Gemma)
                "norm_offset": False,  # norms multiply by 1 + weight (Gemma)
                "scale_embeddings": False,  # by sqrt(D) (Gemma)
                "query_scale": 0.0,  # logits are q.k / sqrt(query_scale); 0 is head_dim
                "attention_soft_cap": 0.0,  # logits become cap * tanh(logit / cap); 0 leaves them (Gemma 2)
                "final_soft_cap": 0.0,  # the same of the output's logits
                "sliding_window": 0,  # keys of its document that a query sees, itself among them; 0 is all
                "global_every": 0,  # every n-th layer has no window; 0: all have (Gemma 2: 2, Gemma 3: 6)
                "compute_dtype": "bfloat16",  # of activations and matmul inputs; sums within a device are float32
                "param_dtype": "float32",  # of weights and optimizer moments
                "dropout": 0.0,  # of the residual branches; long-context runs see each document once and need none
                "remat": "attention",  # none: no product twice; attention: recompute all but it; full: recompute all
            },
            "rope": {
                "theta": 0.0,  # raise it with the row length (paper: 64K 5e6, 128K 1e7); 0: the checkpoint's, or 1e4
                "local_theta": 0.0,  # of layers with a window, never scaled; 0: the checkpoint's, or as the others
                "dtype": "float32",  # bfloat16 reproduces the fault that the paper describes
                "scaling": "auto",  # the checkpoint's, or none; or none | linear | dynamic | yarn | llama3 | longrope
                "factor": 1.0,  # how many times longer than original_length rows get
                "original_length": 0,  # positions that the checkpoint was trained on; linear does not need it
                "attention_factor": 0.0,  # multiplies rotated queries and keys; 0 is the scaling's own (yarn, longrope)
                "beta_fast": 32.0,  # yarn: rotations over original_length above which a pair is left alone
                "beta_slow": 1.0,  # yarn: and below which it is stretched in full
                "low_freq_factor": 1.0,  # llama3: the same by wave length
                "high_freq_factor": 4.0,
                "short_factors": (),  # longrope: H / 2 stretches, for rows up to original_length
                "long_factors": (),  # longrope: and for longer rows
            },
            "lora": {
                "rank": 0,  # 0 trains all weights; r trains two thin matrices beside each target, the rest is frozen
                "alpha": 16.0,  # their product counts alpha / rank
                "targets": ("q", "k", "v", "o"),  # of q, k, v, o, gate, up, down
            },
            "attention": {
                "implementation": "auto",  # auto, or a name from anchorjax/attention
                "q_tile": 0,  # tokens along each side of a tile: small tiles skip more, large ones run faster;
                "kv_tile": 0,  # 0 takes the table in anchorjax/attention/tiles.py
            },
            "data": {
                # public_domain, tfds:NAME, or files for anchorjax.cli.prepare: jsonl:PATH, parquet:PATH,
                # array_record:PATH, text_folder:PATH, anchor_context:PATH, joined by ";".
                # "jsonl:/books,2;parquet:/web,0.25" takes every book twice and one in four web pages
                "source": "public_domain",
                "store": "",  # where anchorjax.cli.prepare puts the tokens, for runs to open; empty: in memory
                "tokenizer": "auto",  # the checkpoint's, or bytes; or a directory with tokenizer.json
                "data_dir": "~/.cache/anchorjax",  # where prepared data sets are kept
                # How anchorjax.cli.prepare reads files. A dot leads into an object, unless a key has that whole name.
                "text_key": "text",  # where a row has its text
                "source_key": "source",  # and the name of its source (SlimPajama: meta.redpajama_set_name)
                "held_out_share": 0.01,  # of the documents, by a hash of each, for validation
                "bad_rows": "raise",  # raise | skip: rows without a document; what is skipped is counted by reason
                "max_bad_share": 0.01,  # of all rows; with more, nothing is written
                "max_row_bytes": 2**24,  # a longer row is a bad one. Tokenizing takes up to 130 times a text's size
                "seq_len": 4096,  # T, with the anchor
                "batch_size": 1,  # B: rows in one optimizer step, over all devices
                "mask": "anchor",  # anchor | intra_doc | full: who may attend to whom (anchorjax/masks.py)
                "positions": "continue",  # continue | reset at each document
                "boundary_targets": False,  # train a document's last token on the next document's first
                "packing": "concat_split",  # fills every row and cuts what its end cuts; first_fit, best_fit: keep
                # documents whole, if they are not longer than a row (anchorjax/data/rows/row_plan.py)
                "tags": False,  # put a document's source in front of it, as text that is not trained on
                "interleave": 0,  # cut documents into so many pieces and mix them in the row: links at long range;
                # 0 is off (the paper measured it to harm; its published code mixed copies of one document)
                "upsample_long": False,  # keep a tenth of documents below 4096 tokens, and each source's share
                "prefetch": 4,  # steps of data prepared ahead
                "workers": 0,  # processes of training and of anchorjax.cli.prepare; the data is the same for any number
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "schedule": "cosine",  # constant | cosine, after the warm-up
                "warmup_steps": 20,
                "final_fraction": 0.1,  # cosine ends at this share of learning_rate
                "beta1": 0.9,
                "beta2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.1,  # on matrices, not on norm scales
                "clip_norm": 1.0,  # global gradient norm; 0 turns clipping off
            },
            "train": {
                "steps": 100,
                "grad_accum_steps": 1,  # micro-batches of batch_size / grad_accum_steps rows per optimizer step
                "loss_chunk": 1024,  # tokens whose logits exist at once, per device
                "log_every": 10,
                "tensorboard": True,
                "peak_tflops": 0.0,  # per device, for MFU; 0 takes the table in models/flops.py, if any
            },
            "eval": {
                "every": 100,  # steps between held-out losses; 0 evaluates at the end only
                "rows": 8,  # rows of each held-out loss during training
                "final_rows": 0,  # rows of the one at the end; 0 is the whole validation split
            },
            "checkpoint": {
                "every": 100,  # steps between saves; the last step is always saved
                "keep": 2,
            },
            # Devices along each axis; -1 (at most once) takes what is left. Their product is the device count.
            "mesh": {
                "data": 1,  # rows; weights are whole on each
                "fsdp": -1,  # rows; weights are cut along it and gathered layer by layer
                "context": 1,  # tokens of a row
                "tensor": 1,  # heads, ffn and vocabulary
            },
        }
    )


def paper(size: str, init_from: str, *, seq_len: int, theta: float) -> "ConfigDict":
    """Continued pretraining as in "When Precision Meets Position" (arXiv 2411.13476, Table 1 and the authors' code).

    2000 steps of 8 rows, AdamW with a constant 2e-5, and a RoPE base for the row's length. The paper's text is
    SlimPajama, which must be given: `--config.data.source=tfds:NAME`, with a `text` feature.

    Args:
      size: a published model of anchorjax/models/families.
      init_from: its Hugging Face directory.
    """
    config = base()
    model, _ = families.published(size)
    config.model.update(model)
    config.init_from = init_from
    config.rope.theta = theta
    config.data.source = ""
    config.data.seq_len = seq_len
    config.data.batch_size = 8
    config.data.mask = "anchor"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.train.steps = 2000
    config.eval.every = 200
    config.checkpoint.every = 100
    config.checkpoint.keep = 5  # the paper averages RULER over the last five checkpoints
    config.mesh.fsdp = 8  # one row each
    config.mesh.context = -1  # all other devices share a row's tokens
    return config
