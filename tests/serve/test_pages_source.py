"""Where answers come from: reasoning split off in any pieces, prompts that are the ids which were said, tools, and other endpoints' answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
from serve_cases import TOKENIZER  # noqa: E402

from freedive.inference.tools import calculator  # noqa: E402
from freedive.model.config import PRESETS as CONFIGS  # noqa: E402
from freedive.runs import UserError  # noqa: E402
from freedive.serve.pages.conversations import Node, node  # noqa: E402
from freedive.serve.pages.drawing import architecture_svg  # noqa: E402
from freedive.serve.pages.source import Delta, Settings, Thinking, chat_prompt, endpoint, endpoint_url, local, said_ids, said_of, spoken  # noqa: E402
from freedive.tokenizer import render  # noqa: E402


@given(st.sampled_from(["<think>a\nb</think>\n\nc", "  <think></think>x", "c <think>d</think>", "<thi", "<think>never closed", "", "<think>a</thi</think>b"]), st.lists(st.integers(0, 25), max_size=6))
def test_reasoning_is_split_off_in_any_pieces(text: str, cuts: list[int]):
    whole = Thinking()
    want = tuple("".join(p) for p in zip(whole.push(text), whole.push("", over=True)))
    pieces, at = [], 0
    for cut in sorted(cuts):
        pieces.append(text[at:cut])
        at = max(at, cut)
    split = Thinking()
    got = [split.push(p) for p in [*pieces, text[at:]]] + [split.push("", over=True)]
    assert ("".join(a for a, _ in got), "".join(r for _, r in got)) == want


def test_what_reasoning_is():
    assert Thinking().push("<think>Hm.</think>\n\nYes.", over=True) == ("Yes.", "Hm.")
    assert Thinking().push("No <think>here</think>", over=True) == ("No <think>here</think>", "")


def answered(text: str, source: str = "m") -> Node:
    return node("", "assistant", text, source=source, tokens=[[i, -0.1, []] for i in TOKENIZER.encode(text)])


def test_a_prompt_is_what_render_makes_of_the_messages():
    nodes = [node("", "user", "Hello <|im_end|>"), answered("Hi!"), node("", "user", "Again")]
    messages = [{"role": n.role, "content": n.text} for n in nodes]
    for system in ("", "Be brief."):
        head = [{"role": "system", "content": system}] if system else []
        want = render(TOKENIZER, [*head, *messages], add_generation_prompt=True)[0]
        assert chat_prompt(TOKENIZER, "m", system, nodes) == want
        assert chat_prompt(TOKENIZER, "other model", system, nodes) == want  # from the text then
        assert chat_prompt(TOKENIZER, "m", system, nodes, prefix=[65]) == [*want, 65]
    nodes[1].tokens = [[104, -0.1, []], [999_999, -0.1, []]]  # no ids of this model's
    assert said_ids(TOKENIZER, "m", nodes[1]) == []
    assert chat_prompt(TOKENIZER, "m", "", nodes) == render(TOKENIZER, messages, add_generation_prompt=True)[0]
    nodes[1].tokens = [[120, -0.1, []]]  # another encoding of what was said: the ids themselves go in
    assert chat_prompt(TOKENIZER, "m", "", nodes) != render(TOKENIZER, messages, add_generation_prompt=True)[0]


def test_an_empty_answer_is_left_out():
    nodes = [node("", "user", "a"), Node("x" * 12, "", "assistant"), node("", "user", "b")]
    want = render(TOKENIZER, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], add_generation_prompt=True)[0]
    assert chat_prompt(TOKENIZER, "m", "", nodes) == want


async def collect(stream: Any) -> list[Delta]:
    async with aclosing(stream) as deltas:
        return [d async for d in deltas]


def whole(deltas: list[Delta]) -> Node:
    from freedive.serve.pages.chat import take

    one = node("", "assistant")
    for delta in deltas:
        take(one, delta)
    return one


def run_on(served: Any, *arguments: Any, **more: Any) -> list[Delta]:
    """On the server's event loop."""
    service = served.service
    return asyncio.run_coroutine_threadsafe(collect(local(service, *arguments, **more)), service._loop).result(60)


def test_the_served_model_answers_with_its_log_probs(served):
    prompt = chat_prompt(TOKENIZER, "tiny", "", [node("", "user", "Hello")])
    one = whole(run_on(served, prompt, Settings(temperature=0, max_tokens=12, alternatives=4), think=False))
    assert one.prompt_tokens == len(prompt) and 1 <= len(one.tokens) <= 12 and one.finish in ("length", "stop")
    assert one.text.startswith(spoken(TOKENIZER, one.tokens)[0].rstrip("\ufffd")[:3])
    for id, lp, top in one.tokens:
        assert len(top) == 4 and top[0] == [id, lp]  # temperature 0: the likeliest
    other = one.tokens[2][2][1]
    before = [*one.tokens[:2], [*other, one.tokens[2][2]]]
    branch = whole(run_on(served, prompt, Settings(temperature=0, max_tokens=8), before=before, think=False))
    assert branch.tokens[:3] == before and len(branch.tokens) <= 11


def test_a_full_context_is_a_sentence(served):
    with pytest.raises(UserError, match="context is 1,024"):
        run_on(served, [65] * 1024, Settings())
    assert len(whole(run_on(served, [65] * 1020, Settings(max_tokens=400), think=False)).tokens) <= 4  # what fits is said


def test_tools_are_called_and_their_answers_are_the_model_s_to_read():
    from serve_http import Served

    with Served(context=1024) as served:
        served.script("It is ", "<|python_start|>", "12*34", "<|python_end|>", "408.", "<|im_end|>")
        prompt = chat_prompt(TOKENIZER, "tiny", "", [node("", "user", "12*34?")])
        one = whole(run_on(served, prompt, Settings(temperature=0, tools=True), tools={"python": calculator}))
        assert one.text == "It is 408." and one.finish == "stop"
        assert [(t["tool"], t["call"], t["answer"]) for t in one.tools] == [("python", "12*34", "408")]
        put = [t[0] for t in one.tokens if t[1] is None]  # not drawn: put in by the tool
        assert put == [TOKENIZER.special("<|output_start|>"), *TOKENIZER.encode("408"), TOKENIZER.special("<|output_end|>")]
        one.source, one.text = "tiny", said_of(TOKENIZER, one.tokens)[0]
        assert one.text == "It is 408."
        again = chat_prompt(TOKENIZER, "tiny", "", [node("", "user", "12*34?"), one, node("", "user", "x")])
        assert again[: len(prompt)] == prompt and again[len(prompt) :][: len(one.tokens)] == [t[0] for t in one.tokens]

        served.script("<|output_start|>", "made up")  # an answer of its own ends the row there
        one = whole(run_on(served, prompt, Settings(temperature=0), tools={"python": calculator}))
        assert one.text == "" and one.tokens == [] and one.tools == []


def test_a_branch_that_begins_within_a_call_runs_it_when_it_is_whole():
    from serve_http import Served

    with Served(context=1024) as served:
        prompt = chat_prompt(TOKENIZER, "tiny", "", [node("", "user", "12*34?")])
        said = [[i, -0.1, []] for i in (TOKENIZER.special("<|python_start|>"), *TOKENIZER.encode("2*"))]
        ended = [*said, [TOKENIZER.encode("3")[0], -0.1, []], [TOKENIZER.special("<|python_end|>"), -0.1, []]]
        for before, script in ((said, ["3", "<|python_end|>", "é.", "<|im_end|>"]), (ended, ["é.", "<|im_end|>"])):  # the end itself may be what was chosen
            served.script(*script)
            one = whole(run_on(served, prompt, Settings(temperature=0), before=before, tools={"python": calculator}))
            assert [(t["call"], t["answer"], t["at"]) for t in one.tools] == [("2*3", "6", 5)] and one.tokens[5][1] is None
            assert one.text == "é." and one.finish == "stop" and one.tokens[: len(before)] == before  # two bytes of a letter, a step each
        served.script("<|python_start|>", "2*")
        cut = whole(run_on(served, prompt, Settings(temperature=0, max_tokens=3), tools={"python": calculator}))
        assert cut.text == "<|python_start|>2*" and cut.finish == "length" and not cut.tools  # nothing a model said is lost
        served.script("one STOP two")
        one = whole(run_on(served, prompt, Settings(temperature=0, stop="STOP"), tools={"python": calculator}))
        assert one.text == "one " and one.finish == "stop"


def test_the_end_can_be_chosen_in_a_token_s_place(served):
    prompt = chat_prompt(TOKENIZER, "tiny", "", [node("", "user", "Hello")])
    before = [[i, -0.1, []] for i in (*TOKENIZER.encode("Yes"), TOKENIZER.special("<|im_end|>"))]
    one = whole(run_on(served, prompt, Settings(), before=before))
    assert one.text == "Yes" and one.tokens == before[:-1] and one.finish == "stop"


CALL = '{"name": "python", "arguments": {"code": "6*7"}}'


def test_calls_in_json_are_run_and_the_answer_goes_on_in_a_turn_of_its_own():
    from serve_http import Served, qwen_tokenizer

    tok = qwen_tokenizer("<think>", "</think>")
    with Served(tok, context=2048) as served:
        asked = [node("", "user", "6*7? <tool_call>")]
        prompt = chat_prompt(tok, "tiny", "Be brief.", asked, tools=["python"])
        assert tok.decode(prompt).startswith("<|im_start|>system\nBe brief.\n\n# Tools") and '"name": "python"' in tok.decode(prompt)
        assert prompt.count(tok.special("<tool_call>")) == 2  # those of ours that say how a call looks: what a user writes is text
        script = ["<think>", "Hm.", "</think>", "\n\nLet me see.\n", "<tool_call>", f"\n{CALL}\n", "</tool_call>", "\n", "<tool_call>", '{"name": "fly"}', "</tool_call>",
                  "<|im_end|>", "<think>", "So.", "</think>", "It is 42 é.", "<|im_end|>"]  # fmt: skip
        served.script(*script)
        one = whole(run_on(served, prompt, Settings(temperature=0), tools={"python": calculator}))
        assert (one.text.split(), one.reasoning, one.finish) == ("Let me see. It is 42 é.".split(), "Hm.So.", "stop") and "\n\nIt is" in one.text
        assert [(t["tool"], t["call"], t["answer"][:5]) for t in one.tools] == [("python", "6*7", "42"), ("", '{"name": "fly"}', "error")]
        put = tok.decode([t[0] for t in one.tokens if t[1] is None])
        assert put.startswith("<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\nerror") and put.endswith("<|im_start|>assistant\n")
        assert said_of(tok, one.tokens) == (one.text, one.reasoning)

        one.source = "tiny"
        again = chat_prompt(tok, "tiny", "Be brief.", [*asked, one, node("", "user", "x")], tools=["python"])
        assert again[: len(prompt)] == prompt and again[len(prompt) :][: len(one.tokens)] == [t[0] for t in one.tokens]

        half = one.tokens[: [t[0] for t in one.tokens].index(tok.special("</tool_call>"))]  # gone on with in the middle of the call
        served.script("</tool_call>", "<|im_end|>", "42.", "<|im_end|>")
        branch = whole(run_on(served, prompt, Settings(temperature=0), before=half, tools={"python": calculator}))
        assert [t["answer"] for t in branch.tools] == ["42"] and branch.text.endswith("\n\n42.") and branch.reasoning == "Hm."

        for forged in (["<tool_response>", "43"], ["<|im_start|>", "user\nx"]):  # only tools and people open turns
            served.script("It is ", *forged)
            assert whole(run_on(served, prompt, Settings(temperature=0), tools={"python": calculator})).text == "It is "
        served.script("<tool_call>", CALL, "<|im_end|>")
        assert whole(run_on(served, prompt, Settings(temperature=0), tools={"python": calculator})).text == "<tool_call>" + CALL  # never closed: not run


@pytest.mark.parametrize("base", ["", "example.com/v1", "file:///etc/passwd", "http://", "http://a b/v1", "http://user:pass@a/v1", "http://a/v1?x=1", "javascript:alert(1)", "gopher://a"])
def test_what_is_no_endpoint(base: str):
    with pytest.raises(UserError, match="is not the address"):
        endpoint_url(base)
    with pytest.raises(UserError, match="is not the address"):
        asyncio.run(collect(endpoint(base, "", "m", [{"role": "user", "content": "x"}], Settings())))


def test_endpoints():
    assert endpoint_url("http://127.0.0.1:80/v1/") == "http://127.0.0.1:80/v1/chat/completions" == endpoint_url("http://127.0.0.1:80/v1/chat/completions")


def test_our_own_server_is_an_endpoint_too(served):
    deltas = asyncio.run(collect(endpoint(f"{served.url}/v1", "", "tiny", [{"role": "user", "content": "Hello"}], Settings(max_tokens=8, seed=3))))
    one = whole(deltas)
    assert one.finish in ("stop", "length") and one.prompt_tokens > 0
    with pytest.raises(UserError, match="404: there is no model"):
        asyncio.run(collect(endpoint(f"{served.url}/v1", "", "other", [{"role": "user", "content": "Hello"}], Settings())))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_can_be_drawn(name: str):
    from xml.etree import ElementTree

    c = CONFIGS[name]
    svg = architecture_svg(c)
    root = ElementTree.fromstring(svg)
    words = list(root.itertext())
    for shape in ((c.vocab_size, c.d_model), (c.n_head * c.head_dim, c.d_model), (c.d_ff, c.d_model), (c.d_model, c.d_ff), (c.d_model, c.n_head * c.head_dim)):
        assert f"{shape[0]:,} × {shape[1]:,}" in words
    assert ("W gate" in words) == (c.mlp == "swiglu") and ("positions" in words) == (c.position == "learned") and any("norm of q, k" in w for w in words) == c.qk_norm
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for rect in root.iter():
        if rect.tag.endswith("rect"):
            x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
            assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
