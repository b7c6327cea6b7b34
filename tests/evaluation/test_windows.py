"""Windows score every token once, in the context that they promise, with the log-probabilities of transformers."""

import numpy as np
import pytest
import torch

from anchorjax.evaluation import windows
from anchorjax.inference import language_model
from anchorjax.inference.scoring import Scorer
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.tiny import VOCABULARY
from tests.evaluation.making import write_tokenizer

BOS = 0
IDS = np.random.default_rng(4).integers(3, VOCABULARY, 45).astype(np.int32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours ready to score)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make("llama untied", directory)
    write_tokenizer(directory)
    description = language_model.describe(hf=directory)
    model = language_model.load(description, language_model.make_mesh(description.model, 1))
    return theirs, Scorer(model, batch_size=4)


def brute_force(theirs, begins: list[int | None], front: list[int]) -> np.ndarray:
    """-log p of each token, given `front` and the tokens from `begins[t]` on; None: no score."""
    contexts = [[] if begin is None else [*front, *IDS[begin:t].tolist()] for t, begin in enumerate(begins)]
    rows_TC = torch.tensor([[*context, *[0] * (len(IDS) + 1 - len(context))] for context in contexts])
    with torch.no_grad():
        nats_TCV = -torch.log_softmax(theirs(rows_TC).logits.double(), -1)
    return np.array([float(nats_TCV[t, len(c) - 1, IDS[t]]) if c else np.nan for t, c in enumerate(contexts)])


@pytest.mark.parametrize(("window", "stride"), [(12, 5), (12, 12), (15, 1), (90, 45)])
def test_sliding_windows_score_every_token_with_the_most_context(pair, window, stride):
    theirs, scorer = pair
    some = windows.sliding(len(IDS), window, stride)
    (nats_T,) = windows.score(scorer, [IDS], [some], [BOS])
    # The first of the windows at 0, stride, 2 * stride, ... in which the token is.
    begins = [max(0, -(-(t + 1 - window) // stride) * stride) for t in range(len(IDS))]
    np.testing.assert_allclose(nats_T, brute_force(theirs, begins, [BOS]), atol=2e-4)
    assert all(t - begin >= window - stride for t, begin in enumerate(begins) if t >= window)


@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 1), (20, 100), (45, 3)])
def test_short_contexts_are_cut_as_in_the_paper(pair, context, stride):
    theirs, scorer = pair
    some = windows.short_contexts(len(IDS), context, stride)
    (nats_T,) = windows.score(scorer, [IDS], [some], [BOS])
    begins = [None if t < context else (t - context) // stride * stride for t in range(len(IDS))]
    np.testing.assert_allclose(nats_T, brute_force(theirs, begins, [BOS]), atol=2e-4)


def test_windows_without_a_beginning_leave_out_the_first_token(pair):
    theirs, scorer = pair
    (nats_T,) = windows.score(scorer, [IDS], [windows.whole(len(IDS))], [])
    np.testing.assert_allclose(nats_T, brute_force(theirs, [0] * len(IDS), []), atol=2e-4)
    assert np.isnan(nats_T).tolist() == [True] + [False] * 44


def test_documents_do_not_see_each_other(pair):
    _, scorer = pair
    documents = [IDS, IDS[::-1], IDS[:20]]
    some = [windows.sliding(len(ids_T), 12, 5) for ids_T in documents]
    for together, ids_T, mine in zip(windows.score(scorer, documents, some, [BOS]), documents, some, strict=True):
        np.testing.assert_allclose(together, windows.score(scorer, [ids_T], [mine], [BOS])[0], atol=1e-5)


def test_the_paper_s_windows():
    """At 32K with the default K = 4096 and w = 1024: 4.375 times the tokens of one pass."""
    some = windows.short_contexts(32768, 4096, 1024)
    assert len(some) == 28
    assert sum(window.end - window.begin for window in some) == 143_360
    assert [t for window in some for t in range(window.first, window.end)] == list(range(4096, 32768))
