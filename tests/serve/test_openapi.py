"""schemathesis on the server's own OpenAPI: whatever it makes up, the answer is no 5xx and has one of the forms that are documented."""

from __future__ import annotations

import json
import os

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from serve_cases import leaks  # noqa: E402

EXAMPLES = int(os.environ.get("FREEDIVE_SCHEMA_EXAMPLES", "25"))  # of each route and mode


@pytest.fixture(scope="module")
def schema(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def operations(schema):
    return [found.ok() for found in schema.get_all_operations()]


def test_every_route_is_in_the_schema(schema):
    assert {o.label for o in operations(schema)} == {
        "GET /v1/models", "GET /v1/models/{model}", "GET /health", "GET /metrics", "POST /v1/completions", "POST /v1/chat/completions", "POST /v1/embeddings",
        "POST /tokenize", "POST /detokenize", "GET /tokenizer_info", "POST /apply-template", "POST /v1/trace",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_made_up_from_the_schema_is_a_server_error(served, schema, mode):
    generation = schemathesis.GenerationMode(mode)
    tried = {200: 0, 400: 0}
    for operation in operations(schema):
        strategy = operation.as_strategy(generation_mode=generation)

        @given(case=strategy)
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
        def probe(case):
            if isinstance(case.body, dict):  # a token or two: this is about what is asked, not about how much is said
                for name in ("max_tokens", "max_completion_tokens"):
                    if isinstance(case.body.get(name), int) and case.body[name] > 3:
                        case.body[name] = 3
            answer = case.call(timeout=60)
            assert answer.status_code < 500, (operation.label, answer.status_code, answer.text[:300], case.body)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text
            tried[200 if answer.status_code < 400 else 400] += 1

        try:
            probe()
        except Unsatisfiable:  # a route without parameters has no wrong requests
            assert mode == "negative" and operation.label.startswith("GET")
    assert served.http.get("/health").status_code == 200
    leaks(served.service)
    print(mode, tried)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))
@settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_json_at_all_is_answered(served, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/v1/trace"):
        for content in (body, {"prompt": body, "max_tokens": 2}, {"messages": [{"role": "user", "content": body}], "max_tokens": 2}):
            answer = served.http.post(path, content=json.dumps(content), headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), answer.text
