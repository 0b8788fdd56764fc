"""Every published form of a conversation gives the same messages; what is no conversation is said."""

from __future__ import annotations

import pytest

from freedive.sft.rows import conversations, rankings, trees

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
        {"prompt": "Hi.", "chosen": "Hello!", "rejected": "Go away."},
        {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]},
        {"chosen": TALK, "rejected": TALK[:1]},
        {"id": "0", "data": ["Hi.", "Hello!"]},
        {"instruction": "Hi.", "input": "", "output": "Hello!"},
        {"question": "Hi.", "answer": "Hello!"},
        {"cat": "talk", "q": "Hi.", "a": "Hello!", "options": ["Hello!", "No."]},
        {"instruction": "Hi.", "instances": [{"input": "", "output": "Hello!"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}, TALK[1]]},
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


def call(name, **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}


def test_calls_of_a_dialogue_corpus_and_of_sharegpt_are_tool_calls():
    turns = [{"role": "user", "text": "A bus?"}, {"role": "assistant", "text": "At 7.", "call": {"service": "Bus_1", "method": "Find", "parameters": {"to": "X"}}, "result": [{"at": "7"}]}]
    said = [{"role": "user", "content": "A bus?"}, call("Find", to="X"), {"role": "tool", "name": "Find", "content": '[{"at": "7"}]'}, {"role": "assistant", "content": "At 7."}]
    assert conversations({"turns": turns}) == [said]
    shared = [("human", "A bus?"), ("function_call", '{"name": "Find", "arguments": {"to": "X"}}'), ("observation", '[{"at": "7"}]'), ("gpt", "At 7.")]
    found = conversations({"conversations": [{"from": a, "value": b} for a, b in shared]})[0]
    assert found == [{k: v for k, v in m.items() if k != "name"} for m in said]


def test_flat_rows_become_the_tree():
    flat = [{"message_id": "a", "parent_id": None, "text": "Q", "role": "prompter"}, {"message_id": "c", "parent_id": "b", "text": "thanks", "role": "prompter"},
            {"message_id": "b", "parent_id": "a", "text": "A", "role": "assistant", "rank": 0}, {"message_id": "d", "parent_id": "a", "text": "B", "role": "assistant", "rank": 1},
            {"message_id": "e", "parent_id": "c", "text": "welcome", "role": "assistant"}]  # fmt: skip
    rows = list(trees(enumerate([flat[0], {"messages": TALK}, *flat[1:]], 1)))
    assert rows[0] == (2, {"messages": TALK}) and [line for line, _ in rows] == [2, 1]
    assert [[m["content"] for m in c] for c in conversations(rows[1][1])] == [["Q", "A", "thanks", "welcome"], ["Q", "B"]]
    (order,) = rankings(rows[1][1])
    assert order.ranks == [0, 1] and [c[0]["content"] for c in order.completions] == ["A", "B"] and order.prompt == [{"role": "user", "content": "Q"}]


def test_a_prompt_that_was_taken_back_teaches_nothing():
    tree = {"prompt": {"text": "q", "deleted": True, "replies": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]}}
    assert conversations(tree) == [] and rankings(tree) == []


def test_orders_of_preference():
    (pair,) = rankings({"prompt": "Hi.", "chosen": "Hello!", "rejected": "No."})
    assert pair.prompt == TALK[:1] and pair.completions == [TALK[1:], [{"role": "assistant", "content": "No."}]] and pair.ranks == [0, 1]
    (implicit,) = rankings({"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "No."}]})
    assert implicit == pair
    (many,) = rankings({"prompt": "Hi.", "completions": ["a", "b", "c"], "ranks": [1, 0, 1]})
    assert many.ranks == [1, 0, 1] and len(many.completions) == 3
    (many,) = rankings({"prompt": "Hi.", "completions": ["a", "b", "c"], "ranks": [0.6, 0.4, 0.6]})
    assert many.ranks == [1, 0, 1]
    answer = {"text": "a", "role": "assistant"}
    for wrong in ({"messages": TALK}, {"prompt": "x", "completions": ["a"], "ranks": []}, {"prompt": "x", "completions": ["a", "b"], "ranks": ["1", 0]}, {"prompt": "x", "completions": 3, "ranks": [1]},
                  {"prompt": {"text": "q", "replies": [{**answer, "rank": "0"}, {**answer, "rank": 1}]}}, {"prompt": {"text": "q", "replies": [1]}}):  # fmt: skip
        with pytest.raises(ValueError):
            rankings(wrong)


@pytest.mark.parametrize("row", [{}, {"text": "x"}, {"messages": []}, {"messages": "x"}, {"turns": [{"role": "user"}]}, {"conversations": [1]}, {"prompt": {"text": "q", "replies": 5}}, {"prompt": {"text": "q", "replies": [5]}},
                                 {"prompt": {"replies": [{"text": "a"}]}}, {"prompt": {"text": "q", "replies": [{"text": "a", "rank": "0"}]}}, {"instruction": "x", "instances": ["x"]},
                                 {"instruction": "x", "instances": 5}, {"instruction": "x", "instances": [{}]}])  # fmt: skip
def test_what_is_no_conversation(row):
    with pytest.raises(ValueError):
        conversations(row)
