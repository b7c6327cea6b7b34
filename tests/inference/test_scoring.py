"""Scores of rows are transformers' log-probabilities, on any mesh and in any company."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from anchorjax.errors import EvaluationError, UsageError
from anchorjax.inference import language_model
from anchorjax.inference.scoring import CHUNK, Scorer
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.tiny import VOCABULARY
from tests.evaluation.making import write_tokenizer

RNG = np.random.default_rng(2)
ROWS = [RNG.integers(3, VOCABULARY, size).tolist() for size in (40, 7, 1, 23)]


@pytest.fixture(scope="module", params=["llama untied", "gemma2"])
def pair(request, tmp_path_factory):
    """(transformers' model, the description of its directory)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make(request.param, directory)
    write_tokenizer(directory)
    return theirs, language_model.describe(hf=directory, context=2 * CHUNK)


def scorer(description, devices, **options):
    return Scorer(language_model.load(description, language_model.make_mesh(description.model, devices)), **options)


def their_scores(theirs, row):
    """(nats, whether the token is the likeliest)."""
    with torch.no_grad():
        logits_TV = theirs(torch.tensor([row])).logits[0, :-1].double()
    targets_t = torch.tensor(row[1:], dtype=torch.long)
    nats_t = -torch.log_softmax(logits_TV, -1).gather(1, targets_t[:, None])[:, 0]
    return nats_t.numpy(), (logits_TV.argmax(-1) == targets_t).numpy()


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_are_those_of_transformers(pair, devices):
    theirs, description = pair
    rows = [*ROWS, [3, *greedy(theirs, 3, 12)]]
    for row, score in zip(rows, scorer(description, devices, batch_size=2).score(rows, likeliest=True), strict=True):
        nats_t, likeliest_t = their_scores(theirs, row)
        np.testing.assert_allclose(score.nats_t, nats_t, atol=2e-4)
        np.testing.assert_array_equal(score.likeliest_t, likeliest_t)
    assert score.likeliest_t.all()


@pytest.mark.parametrize("devices", [1, 8])
def test_what_may_come_next_is_what_transformers_says(pair, devices):
    theirs, description = pair
    for row, found in zip(ROWS, scorer(description, devices, batch_size=2).next(ROWS), strict=True):
        with torch.no_grad():
            logits_V = theirs(torch.tensor([row])).logits[0, -1].double()
        np.testing.assert_allclose(found.nats_V, -torch.log_softmax(logits_V, -1).numpy(), atol=2e-4)
        assert found.likeliest == logits_V.argmax()


def greedy(theirs, first: int, new: int) -> list[int]:
    out = theirs.generate(torch.tensor([[first]]), max_new_tokens=new, do_sample=False, eos_token_id=None)
    return out[0, 1:].tolist()


def test_rows_longer_than_a_chunk_of_logits(pair):
    theirs, description = pair
    row = RNG.integers(3, VOCABULARY, CHUNK + 30).tolist()
    score = scorer(description, 1).score([row], likeliest=True)[0]
    nats_t, likeliest_t = their_scores(theirs, row)
    np.testing.assert_allclose(score.nats_t, nats_t, atol=2e-4)
    np.testing.assert_array_equal(score.likeliest_t, likeliest_t)


def test_what_is_no_probability_is_refused(pair):
    """An id past the table would take another token's row, and NaN would become an infinite perplexity."""
    ready = scorer(pair[1], 1)
    assert ready.score([]) == ready.next([]) == []
    for ask in (ready.score, ready.next):
        with pytest.raises(EvaluationError, match=f"gives the token {VOCABULARY}, and the model knows {VOCABULARY}"):
            ask([[3, VOCABULARY, 4]])
    ready._params.embed_VD[...] = ready._params.embed_VD[...] * jnp.nan
    for ask in (ready.score, ready.next):
        with pytest.raises(EvaluationError, match=r"gives no probabilities \(NaN\) in float32"):
            ask([[3, 5, 4]])


@pytest.mark.parametrize("length", [0, 2 * CHUNK + 1])
def test_rows_that_cannot_be_scored_are_refused(pair, length):
    with pytest.raises(UsageError, match=f"a row of {length:,} tokens cannot be scored"):
        scorer(pair[1], 1).score([[3] * length])
