"""A served tiny model on a port of its own, with what it must say in a script where a test wants that."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import numpy as np
import uvicorn
from openai import OpenAI
from serve_cases import TOKENIZER, make_lm

from freedive.inference.tool_json import CALL, CALL_END
from freedive.model import DecoderConfig
from freedive.serve import Service
from freedive.serve.app import create_app
from freedive.serve.command import _listen
from freedive.serve.protocol import HeaderLimits
from freedive.tokenizer import ChatConfig, Tokenizer

LARGE = DecoderConfig(n_layer=2, d_model=32, n_head=4, n_kv_head=2, head_dim=8, d_ff=64, vocab_size=TOKENIZER.vocab_size, max_positions=1024, qk_norm=True)


def qwen_tokenizer(*more: str) -> Tokenizer:
    """Bytes, ChatML's turns and Qwen's marks of calls."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", CALL, CALL_END, *more]
    chat = ChatConfig(sep="", sep_text="\n", after="\n", bos=False, default_system="You are Qwen.")
    return Tokenizer("bytes", {bytes((b,)): b for b in range(256)}, {n: 256 + i for i, n in enumerate(names)}, None, chat)


class Served:
    """`with Served() as s:` a server; `s.client` is OpenAI's, `s.http` plain."""

    def __init__(self, tokenizer: Tokenizer = TOKENIZER, *, lm: Any = None, limits: Any = None, grace: float = 5.0, context: int = 2048, app: dict[str, Any] | None = None, http: Any = HeaderLimits, **settings: Any):
        config = DecoderConfig(**({f: getattr(LARGE, f) for f in LARGE.__dataclass_fields__} | {"vocab_size": tokenizer.vocab_size, "max_positions": context}))
        self.lm = lm or make_lm(config, tokenizer, max_tokens=2048)  # a prompt is one call of the model, so a script is said token by token
        self.service = Service(self.lm, name="tiny", **settings)
        self.app = create_app(self.service, limits=limits, grace=grace, **app or {})
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=2, http=http))
        self._socket = _listen("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[self._socket])), daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        for _ in range(1000):
            try:
                if self.http.get("/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            threading.Event().wait(0.01)
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._socket.close()

    def script(self, *parts: str) -> None:
        """What the model says from now on, whatever it is asked; names of special tokens in it are those tokens."""
        tok = self.lm.tokenizer
        said = [i for p in parts for i in ([tok.special(p)] if p in tok.special_tokens else tok.encode(p))]
        whole = type(self.lm.model).decode
        while self.service.engine.busy:  # an answer that ended at a stop string takes the step under way with it
            time.sleep(0.001)

        def scripted(*a: Any, **k: Any) -> Any:
            tokens, logprobs = whole(self.lm.model, *a, **k)
            return np.full(len(tokens), said.pop(0) if said else tok.bos_id, np.int32), logprobs

        self.lm.model.decode = scripted  # type: ignore[method-assign]
