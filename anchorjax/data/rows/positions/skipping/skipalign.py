"""Skips between the turns of conversations: SkipAlign (arXiv 2405.03939). The rule by which skips are drawn is ours."""

import numpy as np

from anchorjax.data.rows.positions import RowPieces, RowSpec
from anchorjax.data.rows.positions.skipping._jumps import jump


def positions(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """Conversations skip positions between their blocks; the anchor stays at 0.

    A block is what a user or a system says, or what an assistant answers: neighbouring tokens of a conversation that
    are all trained on, or none of which is. `data.skipalign_where` names the borders that may be skipped at: `inner`,
    where an answer begins, `outer`, where one ends, or `all` of them. The skips of a row add up to at most
    max_position - T, so that positions rise strictly, by 1 except at a skip, and stay below max_position. They carry
    on into later conversations. Padding counts on from the last token.

    The paper gives no rule for the lengths of skips; this one is ours. Conversations with a border draw one after
    another in random order, so that no place in the row is favoured (as in pose.py):

    1. With probability 1 - `data.skipalign_share` the conversation does not skip.
    2. Otherwise the number of its skips is uniform in {1, ..., its borders}, and any borders are equally likely.
    3. Their sum is uniform in {0, ..., what is left of the budget}. Sorted uniform draws split it, each part 1 or more;
       with a smaller sum than skips there are as many skips as the sum.

    The part of a conversation that lies in another row is a conversation of its own, and where it was cut there is no
    border. A conversation that `interleave` cut has its borders in its own order of tokens, also between two pieces.

    Raises:
      ValueError: the row does not say which tokens are trained on.
    """
    starts_B, conversation_B = borders(pieces, spec.config.skipalign_where)
    first_K = np.flatnonzero(np.diff(conversation_B, prepend=-1))
    starts_K = np.split(starts_B, first_K[1:])
    starts, skips = [starts_B[:0]], [starts_B[:0]]
    left = spec.max_position - spec.seq_len
    for k in np.argsort(rng.random_raw(len(first_K)), kind="stable").tolist():
        if not left:  # after about log2(budget) skipping conversations
            break
        chosen, lengths = draw_skips(len(starts_K[k]), left, spec.config.skipalign_share, rng)
        starts.append(starts_K[k][chosen])
        skips.append(lengths)
        left -= int(lengths.sum())
    return jump(spec.seq_len, np.concatenate(starts), np.concatenate(skips))


def borders(pieces: RowPieces, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Index in the row of each token that begins a block, and its conversation: int64 [B] each, by conversation.

    The first token of a conversation is none of them. `where` is a value of data.skipalign_where.
    """
    if pieces.trained_T is None:
        raise ValueError("skipalign needs rows of conversations, which say what is trained on")
    trained_T, first_P, end_P = pieces.trained_T, pieces.start, pieces.start + pieces.length
    changes = 1 + np.flatnonzero(trained_T[1:] != trained_T[:-1])
    piece = np.searchsorted(first_P, changes, side="right") - 1
    inside = (piece >= 0) & (changes > first_P[piece]) & (changes < end_P[piece]) if len(first_P) else piece >= 0
    # A later piece of a conversation follows on its last one, wherever that lies.
    order_P = np.lexsort((pieces.before, pieces.document))
    follows = np.diff(pieces.document[order_P]) == 0
    later, last = order_P[1:][follows], order_P[:-1][follows]
    later = later[trained_T[first_P[later]] != trained_T[end_P[last] - 1]]
    index_B, piece_B = np.append(changes[inside], first_P[later]), np.append(piece[inside], later)
    if where != "all":
        asked_B = trained_T[index_B] == (where == "inner")
        index_B, piece_B = index_B[asked_B], piece_B[asked_B]
    conversation_B = pieces.document[piece_B]
    order_B = np.lexsort((pieces.before[piece_B] + index_B - first_P[piece_B], conversation_B))
    return index_B[order_B], conversation_B[order_B]


def draw_skips(count: int, budget: int, share: float, rng: np.random.Philox) -> tuple[np.ndarray, np.ndarray]:
    """Draws one conversation's skips, steps 1 to 3 above: which of `count` borders, ascending, and how long each is."""
    whether, number, total = rng.random_raw(3).tolist()
    total %= budget + 1
    number = min(1 + number % count, total)
    if whether >= share * 2**64 or not number:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    chosen = np.sort(np.argsort(rng.random_raw(count), kind="stable")[:number])
    spare = total - number  # beyond one position for each skip
    inside = np.sort((rng.random_raw(number - 1) % np.uint64(spare + 1)).astype(np.int64))
    return chosen, 1 + np.diff(inside, prepend=0, append=spare)
