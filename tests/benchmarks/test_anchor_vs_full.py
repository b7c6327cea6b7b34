"""The documents and questions of benchmarks/training/anchor_vs_full.py, and its table."""

import random

from benchmarks.training import anchor_vs_full as bench


def test_signs_are_not_in_the_books():
    assert not set(bench.SIGNS) & set("".join(bench.books()))


def test_a_document_tells_each_sign_the_same_letter_throughout():
    rng = random.Random(0)
    for stage in (bench.SHORT, bench.LONG):
        for _ in range(20):
            text = bench.retrieval(rng, stage)
            assert len(text) >= stage.size[0]
            told = [(text[at], text[at + 1]) for at in range(len(text)) if text[at] in bench.SIGNS]
            assert len(set(told)) == len(bench.SIGNS)
            assert len(told) % len(bench.SIGNS) == 0 and len(told) > stage.tellings * len(bench.SIGNS)


def test_a_question_has_its_length_and_the_letter_that_was_told():
    rng = random.Random(0)
    for length in bench.LENGTHS:
        text, answer = bench.question(rng, length)
        assert len(text) + len(answer) == length
        assert text[text.index(text[-1]) + 1] == answer and text.count(text[-1]) == 2
        assert text.split("\n", 1)[1][:-2] in bench.books()[1]


def test_the_table_has_no_spread_of_one_seed():
    run = {"loss": 1.5, "step_s": 0.25, "tokens_per_s": 8192.0, "retrieval": {str(n): 0.5 for n in bench.LENGTHS}}
    other = run | {"loss": 1.7}
    assert "+-" not in bench.table({"full": [run]})
    assert "1.600 +- 0.141" in bench.table({"full": [run, other]})
