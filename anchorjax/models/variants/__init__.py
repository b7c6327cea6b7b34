"""Attention variants: how a layer attends, in training, scoring and decoding alike. `attention.variant` names one.

A variant is a module with three functions. To add one, write its file, put it into `VARIANTS` and its name into
`types.VARIANTS`; tests/models/test_variants.py asks of it what every variant must do.

    contexts(masks, positions_BT, spec, start=None)     -> a context for each mask: what the layers of one kind share
    attend(q_BTNH, k_BTKH, v_BTKH, context, spec, cache=None)   -> (out_BTNH, cache): queries and keys before RoPE
    cache(rows, columns, spec)                                  -> an empty cache of one layer, a pytree of arrays

With `start` the T columns come after `start` cached ones: masks then are of T queries and all S columns of the cache.
Variants stand here and not under attention/, which knows nothing of RoPE: each places its own positions.
"""

from anchorjax.models.variants import plain

VARIANTS = {"plain": plain}
