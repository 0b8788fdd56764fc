"""Text and ids as the model has them: /tokenize, /detokenize, /tokenizer_info, /apply-template (vLLM's shapes, which lm_eval reads)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from freedive.tokenizer import Tokenizer
from freedive.tokenizer.export import chat_template

from ..asking import beside, service_of, token_text
from ..chat_form import chat_ids, offer
from ..errors import JSON, APIError
from ..schemas import DetokenizeRequest, TemplateRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request, ask: TokenizeRequest) -> Response:
    """Ids of a text, or of a conversation. No string in them gives a special token."""
    service = service_of(request, ask.model)
    tok = service.lm.tokenizer
    if (ask.prompt is None) == (ask.messages is None):
        raise APIError(400, "give a prompt or messages, one of them", param="prompt")
    if ask.messages is not None:
        what = offer(tok, ask.tools, None)
        size = sum(len(m.text) for m in ask.messages)
        ids = await beside(size, chat_ids, tok, ask.messages, what, generate=ask.add_generation_prompt is not False, go_on=bool(ask.continue_final_message))
    else:
        text = ask.prompt or ""
        ids = await beside(len(text), tok.encode if ask.add_special_tokens is False or not tok.add_bos else tok.document_ids, text)
    body: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.context}
    if ask.return_token_strs:
        body["token_strs"] = [token_text(tok, i) for i in ids]
        body["token_bytes"] = [list(tok.token_bytes(i)) for i in ids]
    return JSON(body)


@router.post("/detokenize")
async def detokenize(request: Request, ask: DetokenizeRequest) -> Response:
    """The text of ids."""
    return JSON({"prompt": service_of(request, ask.model).lm.tokenizer.decode(ask.tokens)})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """Special tokens by their roles, and the chat template in Jinja as Hugging Face has it (null where the model has no chat form)."""
    service = service_of(request)
    return JSON(info(service.lm.tokenizer) | {"max_model_len": service.context})


def info(tok: Tokenizer) -> dict[str, Any]:
    special = tok.special_tokens
    bos = tok.bos if tok.bos in special else None
    eos = next((name for name in ([tok.chat.end] if tok.chat else []) + [*tok.eos] if name in special), bos)
    return {"tokenizer_class": "freedive", "bos_token": bos, "eos_token": eos, "pad_token": eos, "vocab_size": tok.vocab_size, "add_bos_token": tok.add_bos,
            "special_tokens": special, "chat_template": chat_template(tok.chat, mark=False) if tok.chat is not None else None}  # fmt: skip


@router.post("/apply-template")
async def apply_template(request: Request, ask: TemplateRequest) -> Response:
    """What the model is given for a conversation: its text, special tokens by name, and its ids."""
    service = service_of(request, ask.model)
    tok = service.lm.tokenizer
    go_on = bool(ask.continue_final_message)
    ids = chat_ids(tok, ask.messages, offer(tok, ask.tools, ask.tool_choice), generate=ask.add_generation_prompt is not False, go_on=go_on)
    return JSON({"prompt": tok.decode(ids), "tokens": ids, "count": len(ids)})
