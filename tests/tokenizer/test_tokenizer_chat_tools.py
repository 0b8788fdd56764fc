"""Tool calls in a conversation: rendered as the tool loop writes them, masked where a tool speaks, and read back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tasks.tool_rows import call, with_call
from freedive.tokenizer import byte_tokenizer, check_mask, parse, render

TOK = byte_tokenizer()
ASKED = [{"role": "user", "content": "What is 3*4?"}]
ROW = with_call(ASKED, "python", "3*4", "12", "It is 12.")


def test_the_form_is_that_of_the_tool_loop():
    ids, mask = render(TOK, ROW)
    text = TOK.decode(ids)
    assert text.endswith("<|im_start|>assistant<|im_sep|><|python_start|>3*4<|python_end|><|output_start|>12<|output_end|>It is 12.<|im_end|>")
    trained = TOK.decode([i for i, m in zip(ids, mask) if m])
    assert trained == "<|python_start|>3*4<|python_end|>It is 12.<|im_end|>"
    check_mask(TOK, ids, mask)
    answer = ids.index(TOK.special("<|output_start|>"))
    with pytest.raises(UserError, match="only the assistant's turns are trained"):
        check_mask(TOK, ids, [*mask[:answer], 1, *mask[answer + 1 :]])


@given(st.lists(st.tuples(st.sampled_from(["python", "search"]), st.text(min_size=1, max_size=9), st.text(max_size=9)), max_size=3), st.text(min_size=1, max_size=9))
def test_what_was_rendered_is_read_back_and_grows_only_at_its_end(calls, last):
    messages = list(ASKED)
    for tool, text, answer in calls:
        messages += [call(tool, text), {"role": "tool", "name": tool, "content": answer}]
    messages += [{"role": "assistant", "content": last}, *ASKED]
    clean = lambda m: {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in m.items()}
    whole = render(TOK, messages)[0]
    if all(text.isascii() for _, text, _ in calls):
        assert [clean(m) for m in messages] == parse(TOK, whole)
    for end in range(1, len(messages) + 1):
        assert whole[: len(part := render(TOK, messages[:end])[0])] == part


def test_a_tools_answer_leaves_the_turn_open():
    ids = render(TOK, ROW[:-1], add_generation_prompt=True)[0]
    assert TOK.decode(ids).endswith("<|output_end|>") and render(TOK, ROW)[0][: len(ids)] == ids


@pytest.mark.parametrize(
    "messages, told",
    [
        ([*ASKED, call("python", "3*4"), *ASKED], "the answer of python is due"),
        ([*ASKED, *ROW[1:3], *ASKED], "what the assistant says to the tool's answer is due"),
        ([{**ASKED[0], "tool_calls": call("python", "1")["tool_calls"]}], "only the assistant calls tools"),
        ([*ASKED, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "fly", "arguments": {}}}]}], "has tool_calls of 'fly'"),
        ([*ASKED, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "python", "arguments": {"x": 1}}}]}], "its one argument is 'code'"),
        ([*ASKED, {"role": "assistant", "content": "", "tool_calls": call("python", "1")["tool_calls"] * 2}], "2 calls at once"),
    ],
)
def test_conversations_that_no_loop_would_write(messages, told):
    with pytest.raises(UserError) as error:
        render(TOK, messages)
    assert told in str(error.value)


def test_arguments_may_be_json_text_as_in_openai_s_answers():
    as_text = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "python", "arguments": '{"code": "3*4"}'}}]}
    assert render(TOK, [*ASKED, as_text, *ROW[2:]]) == render(TOK, ROW)
