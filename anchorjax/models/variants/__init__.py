"""Attention variants: how a layer attends, in training, scoring and decoding alike. `attention.variant` names one.

A variant is a file here with three functions. A new file is a new variant, which tests/models/test_variants.py tests.

    contexts(masks, positions_BT, spec, start=None)   -> a context for each mask: what the layers of one kind share
    attend(q_BTNH, k_BTKH, v_BTKH, context, spec, cache=None, layer=None, head_scale_N=None)
                                                      -> (out_BTNH, cache): queries and keys before RoPE
    cache(rows, columns, spec)                        -> an empty cache of one layer, a pytree of arrays

With `start` the T columns come after `start` cached ones: masks then are of T queries and all S columns of the cache.
`layer` is the layer's number from 0: an int32 scalar in the scan over layers, where it is traced, an int in decoding,
and None where attention is run apart from a model. `head_scale_N`, fp32, is s of scalable softmax (logit_scale.py).
Variants are here and not under attention/, which has no RoPE: each variant rotates queries and keys itself.
"""

import importlib

from anchorjax import types

VARIANTS = {name: importlib.import_module(f"{__name__}.{name}") for name in types.VARIANTS}
