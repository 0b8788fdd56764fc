"""POST /v1/trace: what the model's own trace says, within bounds, while others generate."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from serve_cases import leaks

from freedive.model.trace import lens, trace

WORDS = list(b"to see what passed")


def ask(served, **body):
    return served.http.post("/v1/trace", json=body)


def test_it_is_the_model_s_own_trace(served):
    got = ask(served, prompt=WORDS, want=["topk", "lens", "norms", "attention"], top_k=4).json()
    seen = trace(served.lm.model, WORDS)
    want = lens(served.lm.model, seen, k=4)
    assert got["tokens"] == WORDS and "".join(got["token_strs"]) == bytes(WORDS).decode()
    assert got["lens"]["ids"] == want.ids.tolist() and np.array_equal(np.float32(got["lens"]["logprobs"]), want.logprobs)
    assert [[t["id"] for t in place] for place in got["topk"]] == want.ids[-1].tolist()
    assert np.array_equal(np.float32(got["norms"]), seen.norms())
    a = got["attention"]
    maps = np.frombuffer(base64.b64decode(a["data"]), "<f2").reshape(a["shape"])
    assert a["layers"] == [1, 2] and a["shape"] == [2, 4, len(WORDS), len(WORDS)]
    assert np.array_equal(maps[1, 3], seen.attention(1, 3).astype(np.float16))


def test_a_long_text_is_read_in_pieces_of_the_same_bits(served):
    ids = (WORDS * 12)[:200]
    got = ask(served, prompt=ids, want=["lens"], layers=[1, 2]).json()["lens"]
    want = lens(served.lm.model, trace(served.lm.model, ids), layers=[1, 2])
    assert got["ids"] == want.ids.tolist() and np.array_equal(np.float32(got["logprobs"]), want.logprobs) and np.array_equal(np.float32(got["entropy"]), want.entropy)


def test_parts_can_be_chosen(served):
    got = ask(served, prompt="seen", want=["lens", "attention"], layers=[0, 2], heads=[1]).json()
    assert got["lens"]["layers"] == [0, 2] and got["attention"]["layers"] == [2] and got["attention"]["heads"] == [1] and "topk" not in got
    assert set(ask(served, prompt="seen").json()) == {"object", "model", "tokens", "token_strs", "n_layer", "n_head", "d_model", "topk"}
    assert ask(served, prompt="x", want=["attention"], layers=[0]).json()["attention"]["shape"] == [0, 4, 2, 2]


def test_top_is_what_a_completion_says(served):
    likeliest = ask(served, prompt=WORDS, top_k=1).json()["topk"][-1][0]
    choice = served.http.post("/v1/completions", json={"prompt": WORDS, "max_tokens": 1, "temperature": 0, "logprobs": 1}).json()["choices"][0]
    assert choice["logprobs"]["token_logprobs"][0] == pytest.approx(likeliest["logprob"], abs=1e-5)


@pytest.mark.parametrize(
    "body, told",
    [
        ({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": "x" * 400}, "at most 256"), ({"prompt": [1] * 257}, "at most 256"),
        ({"prompt": [999_999]}, "vocabulary"), ({"prompt": [-1]}, "prompt"), ({"prompt": "x", "layers": [3]}, "0 (its embedding) to 2"), ({"prompt": "x", "heads": [4]}, "0 to 3"),
        ({"prompt": "x", "want": ["weights"]}, "want"), ({"prompt": "x", "top_k": 0}, "top_k"), ({"prompt": "x", "top_k": 21}, "top_k"), ({"prompt": "x", "model": "other"}, "no model"),
        ({"prompt": "x", "layres": [1]}, "no such field"), ({"prompt": [1] * 256, "want": ["attention"], "layers": [1, 2] * 40}, "at most 4,000,000"),
        ({"prompt": [1] * 256, "want": ["lens"], "layers": [1] * 33}, "8,192"),
    ],
)  # fmt: skip
def test_bad_requests_are_400(served, body, told):
    answer = ask(served, **body)
    assert answer.status_code in (400, 404) and told in answer.json()["error"]["message"], answer.text
    leaks(served.service)
