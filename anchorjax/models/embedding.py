"""The look-up of tokens in an embedding that no device holds whole.

Token ids travel, and the table does not. The devices that share the table all-gather their token ids; each looks all of
these up in its own columns, and an all-to-all brings the columns of each token to the token's device. A device with n
tokens exchanges n * D values in each pass. Gathering the table would take V * D values, and summing its gradient over
the devices twice as many, in fp32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from anchorjax.sharding import ACTIVATIONS, BATCH, EMBEDDED, axes_of


def looked_up(tokens_BT: jax.Array, embed_VD: jax.Array, dtype: str) -> jax.Array:
    """Rows of the embedding [B, T, D] in `dtype`, sharded as the residual stream.

    Args:
      tokens_BT: int32 [B, T], sharded as a batch.
      embed_VD: cut along D as it rests. Its gradient is summed in its own dtype; what travels has `dtype`.
    """
    pspec, mesh = jax.typeof(embed_VD).sharding.spec, jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in axes_of(pspec[1]) if name != "tensor")
    if all(mesh.shape[name] == 1 for name in axes):  # no token travels
        x_BTD = embed_VD.at[tokens_BT].get(out_sharding=EMBEDDED).astype(dtype)
    else:
        local = functools.partial(_local, dtype=dtype, axes=axes)
        x_BTD = jax.shard_map(local, in_specs=(BATCH, pspec), out_specs=EMBEDDED)(tokens_BT, embed_VD)
    return reshard(x_BTD, ACTIVATIONS)


def _local(tokens_BT: jax.Array, embed_Vd: jax.Array, dtype: str, axes: tuple[str, ...]) -> jax.Array:
    tokens_fBT = jax.lax.all_gather(tokens_BT, axes)
    x_fBTd = embed_Vd[tokens_fBT].astype(dtype)
    x_fBTd = jax.lax.all_to_all(x_fBTd, axes, 0, 0)  # from tokens of each device to columns of each device
    x_BTfd = jnp.moveaxis(x_fBTd, 0, 2)
    return x_BTfd.reshape(*tokens_BT.shape, -1)
