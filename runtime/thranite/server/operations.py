"""Every operation of the API: what it takes and what it answers. A test holds the list to the routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thranite.server.wire import anthropic, chat, completion, embedding, model, plain, responses
from thranite.server.wire.error import ErrorBody


@dataclass(frozen=True, slots=True)
class Operation:
    """`request` and `answer` are JSON bodies; None: there is none, or it is no JSON. `events`: of a stream, if it can.

    `media`: of an answer that is no JSON. `deadline`: whether X-Request-Timeout bounds it.
    """

    method: str
    path: str
    summary: str
    request: Any = None
    answer: Any = None
    events: Any = None
    error: Any = ErrorBody
    media: str = "application/json"
    deadline: bool = False


OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        chat.ChatRequest,
        chat.ChatCompletion,
        chat.ChatChunk,
        deadline=True,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Complete prompts",
        completion.CompletionRequest,
        completion.Completion,
        completion.Completion,
        deadline=True,
    ),
    Operation(
        "post",
        "/v1/responses",
        "Answer a conversation, without storing it",
        responses.ResponseRequest,
        responses.Response,
        dict[str, Any],
        deadline=True,
    ),
    Operation(
        "post",
        "/v1/messages",
        "Answer a conversation, as Anthropic's clients ask",
        anthropic.MessagesRequest,
        anthropic.OutputMessage,
        dict[str, Any],
        anthropic.MessageError,
        deadline=True,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "Count the tokens of a conversation",
        anthropic.CountTokensRequest,
        anthropic.TokenCount,
        error=anthropic.MessageError,
    ),
    Operation(
        "post",
        "/generate",
        "Complete one prompt",
        plain.GenerateRequest,
        plain.Done,
        plain.Delta | plain.Done,
        deadline=True,
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "Prompts as vectors",
        embedding.EmbeddingRequest,
        embedding.EmbeddingList,
        deadline=True,
    ),
    Operation("post", "/tokenize", "Text or messages to tokens", plain.TokenizeRequest, plain.TokenizeAnswer),
    Operation("post", "/detokenize", "Tokens to text", plain.DetokenizeRequest, plain.DetokenizeAnswer),
    Operation("get", "/v1/models", "List what is served", answer=model.ModelList),
    Operation("get", "/v1/models/{model}", "Describe a model", answer=model.ModelCard),
    Operation("get", "/health", "Whether the engine runs", answer=dict[str, Any]),
    Operation("get", "/metrics", "Figures for Prometheus", media="text/plain"),
    Operation("get", "/openapi.json", "This description", answer=dict[str, Any]),
    Operation("get", "/", "A page to chat with the model and watch its figures", media="text/html"),
)
