"""What requests may hold: every field with its type and bounds. A field that is not here is a 400, as OpenAI has it: a misspelt
`temprature` that is quietly ignored costs more than an error.

Fields of OpenAI's that change nothing here (user, store, metadata, ...) are taken; what we add (top_k, min_p, ...) has vLLM's names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 16
MOST_PROMPTS = 128
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=2**20)]
Count = Annotated[int, Field(ge=1, le=2**20)]


class Strict(BaseModel):
    """No other fields, no conversions ("1" is no number, true is none either), no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # no effect


class StructuredOutputs(Strict):
    """An answer's form, one of these; vLLM's field."""

    json_schema: dict[str, Any] | bool | None = Field(None, alias="json")
    regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1000)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None  # Lark


class Sampling(Strict):
    """What completions and chats share."""

    model: Annotated[str, Field(max_length=500)] | None = None  # None: the one there is
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # None is 1
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # 0 and -1: off
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None  # None: a new one each time, told as x_seed
    stop: Annotated[str, Field(min_length=1, max_length=1000)] | Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None  # go on to max_tokens
    min_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None  # from here on: no effect
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: (
        str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)] | Ids | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)] | None
    ) = None  # None: the beginning of a document
    max_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = None  # None is 16; 0 with echo only scores the prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: None = None  # models here are not trained to fill in


class FunctionDefinition(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Annotated[str, Field(max_length=20_000)] | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None  # arguments of a forced call always keep to the schema


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    name: str


class NamedChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: Annotated[str, Field(max_length=64)]
    arguments: str  # JSON


class ToolCallMessage(Strict):
    id: Annotated[str, Field(max_length=200)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Strict):
    """One message of a conversation. `developer` is `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=200)] | None = None  # no effect
    tool_calls: Annotated[list[ToolCallMessage], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=200)] | None = None
    refusal: str | None = None  # of an answer given back: no effect
    reasoning_content: str | None = None  # of an answer given back: earlier thoughts are not shown to a model again
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""


Messages = Annotated[list[Message], Field(min_length=1, max_length=2048)]
Tools = Annotated[list[Tool], Field(max_length=128)]


class JSONSchemaFormat(Strict):
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class ObjectFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JSONSchemaFormat


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Count | None = None  # None: as many as the context has room for
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None  # false: only the first call of an answer is given
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None  # the last message is the assistant's, and the answer goes on with it
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None  # none: no thoughts; the others have no effect
    verbosity: Literal["low", "medium", "high"] | None = None  # no effect


class EmbeddingRequest(Strict):
    """POST /v1/embeddings. pooling: the mean of all positions' last hidden states, or the last one's."""

    model: Annotated[str, Field(max_length=500)] | None = None
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)] | Ids | Annotated[list[Ids], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    dimensions: Count | None = None  # the model's width is the only one
    user: str | None = None


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or messages as /apply-template writes them."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None  # the token that begins a text, where the model was made so; None is true
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None  # also each token's text and bytes


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=500)] | None = None
    tokens: Annotated[list[Id], Field(max_length=2**20)]


class TemplateRequest(Strict):
    """POST /apply-template: what a model is given for a conversation."""

    model: Annotated[str, Field(max_length=500)] | None = None
    messages: Messages
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    add_generation_prompt: bool | None = None  # None is true
    continue_final_message: bool | None = None


_Number = Annotated[int, Field(ge=0, lt=4096)]


class TraceRequest(Strict):
    """POST /v1/trace."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)] | Annotated[list[Id], Field(min_length=1, max_length=100_000)]  # at most 256 tokens
    want: Annotated[list[Literal["topk", "lens", "attention", "norms"]], Field(min_length=1, max_length=4)] | None = None  # None is topk
    layers: Annotated[list[_Number], Field(min_length=1, max_length=512)] | None = None  # 0 is the embedding, 1 the first block; None: all
    heads: Annotated[list[_Number], Field(min_length=1, max_length=1024)] | None = None  # of attention; None: all
    top_k: Annotated[int, Field(ge=1, le=20)] | None = None  # None is 5
