import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorjax.data import tokenizer as tokenizer_lib

TOKENIZER = tokenizer_lib.load("bytes")


@given(st.text())
def test_every_text_survives_the_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32
    assert TOKENIZER.decode(ids) == text


@given(st.text())
def test_token_bytes_count_the_bytes_of_a_text(text):
    ids = np.append(TOKENIZER.encode(text), [TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id])
    assert TOKENIZER.token_bytes_V[ids].sum() == len(text.encode())


def test_decode_drops_specials_and_marks_broken_text():
    ids = [256, 72, 105, 257, 258, 0xC3]
    assert TOKENIZER.decode(ids) == "Hi\N{REPLACEMENT CHARACTER}"


def test_specials_are_the_last_ids():
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (256, 257, 258)
    assert TOKENIZER.token_bytes_V.shape == (TOKENIZER.vocab_size,) == (259,)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"'words'.*allowed: bytes"):
        tokenizer_lib.load("words")
