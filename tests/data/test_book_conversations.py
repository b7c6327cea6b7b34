"""Conversations about the shipped books: the answers are words of the books, and the file can be prepared."""

import json
import re

from anchorjax.data import book_conversations
from anchorjax.data.conversations import Conversation
from anchorjax.data.sources.public_domain import read


def chapters(number):
    found = dict(sorted([*read(False), *read(True)]))
    return [" ".join(found[index]["text"].split()) for index in range(number)]


def test_answers_follow_what_is_shown():
    texts = chapters(4)
    rows = list(book_conversations.make(chapters=4))
    assert rows == list(book_conversations.make(chapters=4)) != list(book_conversations.make(1, chapters=4))
    assert {row["source"] for row in rows} == set(book_conversations.KINDS) and len(rows) == 4 * 3 * 2
    for row in rows:
        Conversation.of(row["messages"], "messages", 2**24)
        questions, answers = ([one["content"] for one in row["messages"][i::2]] for i in (0, 1))
        passage = questions[0].split("\n\n")[1]
        assert sum(passage in text for text in texts) == 1
        if row["source"] == "continuation":
            assert any(f"{passage} {answers[0]}" in text for text in texts)
            continue
        assert len(questions) == 3
        for question, answer in zip(questions, answers, strict=True):
            shown = eval(re.search(r"""(?:follows|after) ('.*'|".*")( in it\?|\? Quote)""", question)[1])
            assert passage.count(shown) == 1 and f"{shown} {answer}" in passage


def test_the_file(tmp_path, capsys):
    file = tmp_path / "data" / "x.jsonl"
    assert book_conversations.main([str(file), "--chapters=2"]) == 0
    assert capsys.readouterr().out == f"12 conversations in {file}\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == list(book_conversations.make(chapters=2))
    assert book_conversations.main([str(file / "y"), "--chapters=2"]) == 2
    assert "x.jsonl/y cannot be written" in capsys.readouterr().err
