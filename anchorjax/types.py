"""The batch contract, the names of choices, and the letters that name array axes everywhere in anchorjax.

    B  rows in a batch           N  query heads            V  vocabulary
    T  tokens of a row (query)   K  key/value heads        L  layers
    S  tokens of a row (key)     G  query heads per kv head (N = K * G)
    D  model width               H  head width             A  anchor tokens
    F  feed-forward width        C  tokens of a loss chunk

`x_BTD` is an array of shape [B, T, D].
"""

import dataclasses
import pkgutil
from pathlib import Path

import jax


def _files(folder: str) -> tuple[str, ...]:
    """Returns the names of the modules in a folder of this package, sorted, and imports none of them.

    Packages do not count, nor do modules whose names begin with `_`: those hold what the others share.
    """
    found = pkgutil.iter_modules([str(Path(__file__).parent / folder)])
    return tuple(sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_")))


# Names that both the configuration and the code behind it know. Where a folder is listed, a new file is a new name.
VARIANTS = _files("models/variants")  # of attention
IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu")  # of attention: modules in anchorjax/attention
CONTEXT_STRATEGIES = _files("attention/parallel")  # how devices share a row
CONTEXT_LAYOUTS = ("documents", "zigzag", "contiguous")  # which device holds which tokens of a row
MASKS = ("anchor", "intra_doc", "full")  # who may attend to whom
SKIPPING = _files("data/rows/positions/skipping")  # RoPE positions that skip some, up to data.max_position
POSITIONS = ("continue", "reset", *_files("data/rows/positions"), *SKIPPING)
PACKINGS = ("concat_split", "first_fit", "best_fit")  # which documents share a row
WINDOW_SCHEDULES = ("none", "linear", "sine", "exponential")  # how attention's window grows to the whole row

OBJECTIVES = _files("training/objectives")  # what a run minimizes

PAD_SEGMENT = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows. Numpy on the host, sharded `jax.Array`s on the device.

    Attributes:
      tokens_BT: int32 token ids; the anchor comes first in every row, in any order of the tokens.
      targets_BT: int32 id that follows each token in its document.
      is_target_BT: bool; False where there is no target (document ends, padding). Weights are the objective's part.
      positions_BT: int32 RoPE positions. They never decide visibility.
      segment_ids_BT: int32 document of each token in its row; PAD_SEGMENT is padding.
      visible_BT: int32 keys that each token sees in a layer without a window, itself among them; 0 for padding.
      index_BT: int32 place of each token in its row. The arrays may hold a row's tokens in another order, which
        balances the work of the devices that share it (data/rows/balance.py); the index is what "earlier" means.
    """

    tokens_BT: jax.Array
    targets_BT: jax.Array
    is_target_BT: jax.Array
    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    visible_BT: jax.Array
    index_BT: jax.Array
