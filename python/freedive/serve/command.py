"""`freedive serve MODEL`: the server on the command line, from the port it takes to the way it ends."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.inference.chat import find_model
from freedive.inference.folder import chat_tokens_untrained, model_name  # noqa: F401 - others take it from here
from freedive.inference.load import DTYPE_HELP, KV_CACHE_HELP, WEIGHTS_HELP, load
from freedive.runs import UserError, check_at_least, option

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
INSTALL = "run: pip install 'freedive[serve]'"


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model: OpenAI's API, and pages to chat with it. Ctrl-C ends it: answers under way are finished first, for --grace seconds."""

    path: Path | None = option(None, "the model: a folder, a .gguf file, a llama2.c .bin (default: the newest of freedive-dive/rl, sft, pretrain)", positional=True)
    model: Path | None = option(None, "the same, by name")
    port: int = option(8000, "to listen on; 0 takes a free one")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every network this machine is in (give an --api-key then)")
    name: str | None = option(None, "the model's id in the API (default: its file's or folder's name)")
    api_key: str | None = option(None, "ask for this key on every path but /health (better: the environment variable FREEDIVE_API_KEY)")
    allow_host: list[str] = option([], "more names this server answers to, as in http://NAME:PORT")
    allow_origin: list[str] = option([], "web pages that may use it, e.g. https://example.org")
    pages: bool = option(True, "pages for the browser (needs nicegui); --no-pages: the API only")
    conversations: Path | None = option(None, "folder in which the chat page keeps conversations (default: ~/.local/share/freedive/conversations)")
    max_seqs: int = option(64, "answers written at once")
    max_queue: int = option(64, "answers that may wait; more are told to come again (429)")
    deadline: float = option(600.0, "seconds an answer may take, waiting included")
    grace: float = option(10.0, "seconds that answers under way have when the server ends")
    max_body: int = option(1 << 20, "bytes a request may have")
    cache_tokens: int | None = option(None, "positions of the key-value cache, shared by all (default: 4 contexts or 32,768 if memory allows)")
    max_batch_tokens: int = option(2048, "tokens computed in one step at most")
    verbose: bool = option(False, "a line for each request")
    threads: int | None = option(None, "CPU threads (default: all)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    kv_cache_dtype: str = option("auto", KV_CACHE_HELP)


def run(c: ServeConfig) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code."""
    check_at_least(c, 1, "max_seqs", "max_body", "cache_tokens", "max_batch_tokens", "threads")
    check_at_least(c, 0, "max_queue", "grace", "port")
    if c.port > 65535:
        raise UserError(f"port is {c.port}; there are ports up to 65535")
    if not 0 < c.deadline < float("inf"):
        raise UserError(f"deadline is {c.deadline}, it must be above 0")
    if c.path is not None and c.model is not None:
        raise UserError(f"two models are named: {c.path} and {c.model}")
    key = key_of(c.api_key)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serving needs the Python package {missing[0].replace('_', '-')}, which is not installed", hint=INSTALL)
    path = find_model(c.path or c.model)
    with _listen(c.host, c.port) as listening:  # before the model is loaded: a port that is taken is told at once
        lm = load(path, threads=c.threads, dtype=c.dtype, weights=c.weights, kv_cache_dtype=c.kv_cache_dtype,
                  max_tokens=max(c.max_batch_tokens, c.max_seqs), max_seqs=c.max_seqs)  # fmt: skip
        _serve(c, lm, path, listening, key)
    return 0


def key_of(given: str | None) -> str | None:
    """The key that is asked for: the one given, or FREEDIVE_API_KEY's, or none. UserError for one that cannot be sent."""
    key = given if given is not None else os.environ.get("FREEDIVE_API_KEY") or None
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise UserError("the API key is empty or has characters that a header cannot carry", hint="letters, digits and signs, e.g. from: openssl rand -hex 16")
    return key


def _serve(c: ServeConfig, lm: Any, path: Path, listening: socket.socket, key: str | None) -> None:
    import uvicorn

    from .app import create_app
    from .protocol import HeaderLimits
    from .security import limits_for
    from .service import Service

    service = Service(lm, name=c.name or model_name(path), max_queue=c.max_queue, deadline=c.deadline, cache_tokens=c.cache_tokens)
    pages = c.pages and _pages_can_be_had()
    limits = limits_for(c.host, hosts=c.allow_host, origins=c.allow_origin, api_key=key, body_bytes=c.max_body)
    app = create_app(service, limits=limits, grace=1.0, pages=pages, **(_page_settings(c, path) if pages else {}))
    port = listening.getsockname()[1]
    shown = c.host if c.host not in ("0.0.0.0", "::") else "127.0.0.1"
    where = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    config = uvicorn.Config(app, log_level="info" if c.verbose else "warning", access_log=c.verbose, timeout_graceful_shutdown=max(1, round(c.grace)),
                            server_header=False, timeout_keep_alive=30, ws_max_size=c.max_body, http=HeaderLimits)  # fmt: skip
    sys.setswitchinterval(0.001)  # the engine's thread waits for the interpreter so long at most, where it has a step to begin
    print(f"{path}: {lm.model.config.n_params():,} parameters, context {service.context:,} tokens, as {service.name!r}")
    print(f"{'pages and API' if pages else 'API'}: {where}{'' if pages else '/v1'}" + ("" if key is None else ", with a key"))
    if key is None and limits.any_address:
        print("note: everybody in these networks can use it; --api-key asks for a key")
    print(f'try: curl {where}/v1/completions -H "Content-Type: application/json" ' + ("" if key is None else '-H "Authorization: Bearer KEY" ')
          + """-d '{"prompt": "Once upon a time", "max_tokens": 20}'""", flush=True)  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # Ctrl-C or SIGTERM, which uvicorn raises again once it has ended in order
        pass
    print("stopped")


def _page_settings(c: ServeConfig, path: Path) -> dict[str, Any]:
    """For serve/pages. Other endpoints are asked from here by whoever sees the pages, so only where that is this machine's own user."""
    from .security import LOOPBACK

    return {"conversations": c.conversations, "base": chat_tokens_untrained(path), "remote": c.host in LOOPBACK}


def _pages_can_be_had() -> bool:
    missing = [name for name in ("nicegui", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments", "httpx") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"note: no pages, for {missing[0].replace('_', '-')} is not installed; pip install 'freedive[serve]' brings it, --no-pages leaves this note out")
    return not missing


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where that cannot be."""
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; ports go from 0, which takes a free one, to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With the protocol named, asyncio turns Nagle's algorithm off on what is accepted; without, each short answer waits 40 ms for it.
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"host is {host!r}, and that is no address of this machine: {error.strerror}", hint="--host 127.0.0.1") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        return made
    except OSError as error:
        made.close()
        raise UserError(f"{host}:{port} cannot be listened on: {error.strerror}", hint="--port 0 takes a free one") from None
