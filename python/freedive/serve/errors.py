"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}, for whatever goes wrong, wherever it goes wrong."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from freedive.runs import UserError

from .stream import Busy, Closing, ContextOverflow, EngineFailure

_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "body_too_large", 415: "unsupported_media_type", 431: "headers_too_large"}


class APIError(Exception):
    """An answer that is an error. `param` names the field, `code` is for programs."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code or _CODES.get(status), param, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class JSON(Response):
    """A JSON response. Half characters (lone surrogates, which JSON can carry and UTF-8 cannot) become U+FFFD."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content).encode("utf-8", "replace")


def dumps(content: Any) -> str:
    """Compact JSON. A number that JSON does not know is a bug, and raises."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def finite(logprob: float) -> float:
    """A log-prob as JSON can say it: that of an impossible token is -9999, as OpenAI has it."""
    return logprob if math.isfinite(logprob) else -9999.0


def as_api_error(error: BaseException) -> APIError:
    """What a client is told of an exception."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ContextOverflow):
        return APIError(400, _sentence(error), code="context_length_exceeded")
    if isinstance(error, UserError):
        return APIError(400, _sentence(error))
    if isinstance(error, Busy):
        return APIError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, Closing):
        return APIError(503, str(error), code="shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return APIError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    message = str(error) if isinstance(error, EngineFailure) else "an error in the server: see its terminal"
    return APIError(500, message, code="internal_error")


def respond(error: APIError) -> JSON:
    return JSON(error.body, error.status, error.headers)


def install(app: FastAPI) -> None:
    """Make every error of an app one of these."""

    async def handle(request: Request, error: Exception) -> Response:
        return respond(as_api_error(error))

    for kind in (APIError, UserError, Busy, Closing, EngineFailure, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _sentence(error: UserError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _invalid(error: RequestValidationError) -> APIError:
    """The first things that are wrong with a body, by the names of its fields."""
    found, seen = [], set()
    for e in error.errors():
        if e["type"] == "json_invalid":
            return APIError(400, f"the body is not JSON: {e.get('ctx', {}).get('error', e['msg'])}", code="invalid_json")
        # Unions name their branches in the location; people know fields and places in lists only.
        place = ".".join(str(p) for p in e["loc"][1:] if isinstance(p, int) or str(p).replace("_", "").isalnum() and str(p) not in _BRANCHES)
        if e["type"] == "literal_error" and place.endswith(".type") and "content" in place:
            return APIError(400, f"{place} is {str(e['input'])[:60]!r}: models here read text", code="invalid_value", param=place)
        told = "there is no such field" if e["type"] == "extra_forbidden" else e["msg"][:1].lower() + e["msg"][1:]
        line = f"{place or 'the body'}: {told}" + (f", found {str(e['input'])[:60]!r}" if isinstance(e.get("input"), (str, int, float)) else "")
        if line not in seen:
            seen.add(line)
            found.append((place, line))
    unknown = bool(error.errors()) and error.errors()[0]["type"] == "extra_forbidden"
    return APIError(400, "; ".join(line for _, line in found[:3]), code="unknown_parameter" if unknown else "invalid_value", param=found[0][0] or None)


_BRANCHES = {"str", "int", "float", "bool"}
