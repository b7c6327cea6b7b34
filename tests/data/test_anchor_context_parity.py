"""Our rows against those that AnchorContext's FlexAttention engine makes of one row of its own format.

`reference_row` states what its `train.py` computes, in our words: `process_tokenized_data` strips the anchor from each
document's head, joins the documents, cuts at L tokens and puts one anchor in front; tokens [0, L) are the input and
[1, L] the targets; the mask is causal and (same document or anchor); RoPE positions are 0 to L - 1.

What it does beside that and we do not, each on purpose:
- Targets across a document's end are trained on: here only with `data.boundary_targets`.
- A row is cut at L tokens and the rest is dropped, as are documents of up to 2 tokens and rows beyond the 64000th: a
  store keeps all, and a document goes on in the next row.
- The anchor must not occur in a text (so Qwen, whose anchor ends documents, fails): here it is known by its place.
- `interleaved_chunks` never reaches the code, which would mix copies of one document: `data.interleave` does.
- With text instead of ids a row becomes one token too long and is filtered out, every one.
- Its FlashAttention engine gives every document an anchor of its own, which takes up a position: another layout.
"""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data
from anchorjax.masks import allowed
from tests.data import preparing
from tests.data.preparing import BYTES, data_config
from tests.data.test_anchor_context import held_out, no_validation  # noqa: F401 - a fixture

# A store ends each document with the end of sequence, so that these have it too.
DOCUMENTS = st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=12), min_size=1, max_size=8)


def reference_row(row, length, anchor):
    """tokens [L], targets [L], mask [L, L], positions [L]; None if the row is too short for L + 1 tokens."""
    tokens, documents, begin = [anchor], [0], 0
    for number, span in enumerate(row["source"], 1):
        document = row["input_ids"][begin : span["end"]]
        begin = span["end"]
        document = document[1:] if document[0] == anchor else document
        tokens += document
        documents += [number] * len(document)
    if len(tokens) < length + 1:
        return None
    index, documents = np.arange(length), np.array(documents[:length])
    seen = (documents[:, None] == documents[None]) | (documents[None] == 0)
    return tokens[:length], tokens[1 : length + 1], seen & (index[None] <= index[:, None]), index


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.booleans(), st.data())
def test_first_row(tmp_path_factory, documents, begins_with_anchor, draw):
    folder = tmp_path_factory.mktemp("packed")
    begin = [BYTES.bos_id] * begins_with_anchor
    whole = [[*begin, *inner, BYTES.eos_id] for inner in documents]
    ends = np.cumsum([len(document) for document in whole]).tolist()
    spans = [{"source": "C4", "start": start, "end": end} for start, end in zip([0, *ends], ends, strict=False)]
    packed = {"input_ids": list(itertools.chain(*whole)), "source": spans, "labels": [0]}
    length = draw.draw(st.integers(2, 1 + sum(len(inner) + 1 for inner in documents)), label="row length")
    expected = reference_row(packed, length, BYTES.bos_id)

    path = preparing.write_jsonl(folder / "x.jsonl", [packed])
    train, _ = preparing.prepare(folder, f"anchor_context:{path};jsonl:{held_out(folder)}", held_out_share=0.0)
    config = data_config(mask="anchor", positions="continue", boundary_targets=True, seq_len=length, batch_size=1)
    batch = next(iter(data.eval_rows(train, BYTES, config, 1)))

    if expected is None:  # nothing is behind the row's last token
        assert not batch.is_target_BT[0, -1]
        return
    tokens, targets, mask, positions = expected
    np.testing.assert_array_equal(batch.tokens_BT[0], tokens)
    np.testing.assert_array_equal(batch.targets_BT[0, :-1], targets[:-1])
    np.testing.assert_array_equal(batch.positions_BT[0], positions)
    segments, index = batch.segment_ids_BT[0], np.arange(length)
    np.testing.assert_array_equal(allowed(index[:, None], index, segments[:, None], segments, 1), mask)
    # The last target is the next token where the document goes on; behind a document's end the next row begins.
    goes_on = tokens[-1] != BYTES.eos_id and length > 1
    assert batch.is_target_BT[0].tolist() == [1.0] * (length - 1) + [float(goes_on)]
    assert not goes_on or batch.targets_BT[0, -1] == targets[-1]
