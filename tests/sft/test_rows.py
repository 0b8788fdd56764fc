"""Every published form of a conversation gives the same messages; what is no conversation is said."""

from __future__ import annotations

import pytest

from freedive.sft.rows import conversations

TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello!"}]},
        {"turns": [{"role": "user", "text": "Hi."}, {"role": "assistant", "text": "Hello!"}]},
        {"turns": [{"speaker": "USER", "text": "Hi."}, {"speaker": "Assistant", "text": "Hello!"}]},
        {"prompt": "Hi.", "completion": "Hello!"},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {"prompt": {"text": "Hi.", "role": "prompter", "replies": [{"text": "Hello!", "role": "assistant", "replies": []}]}},
    ],
)
def test_forms(row):
    assert conversations(row) == [TALK]


def test_a_tree_gives_one_conversation_for_each_first_reply_best_first():
    def say(text, rank=None, replies=(), role="assistant", **more):
        return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}

    deep = say("best", 0, [say("why?", None, [say("worse", 1), say("because", 0)], "prompter"), say("gone", None, [], "prompter", deleted=True)])
    tree = {"prompt": say("Q", None, [say("second", 1, [say("thanks", None, [], "prompter")]), deep, say("unranked")], "prompter")}
    texts = [[m["content"] for m in c] for c in conversations(tree)]
    assert texts == [["Q", "best", "why?", "because"], ["Q", "second"], ["Q", "unranked"]]
    assert all(c[-1]["role"] == "assistant" for c in conversations(tree))


@pytest.mark.parametrize("row", [{}, {"text": "x"}, {"messages": []}, {"messages": "x"}, {"turns": [{"role": "user"}]}, {"conversations": [1]}])
def test_what_is_no_conversation(row):
    with pytest.raises(ValueError):
        conversations(row)
