"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from thranite.errors import InvalidRequest
from thranite.server.caller import Caller
from thranite.server.chat_prompt import render
from thranite.server.context import ServerContext
from thranite.server.decode import decode
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.reply import Reply
from thranite.server.tool_plan import plan_tools
from thranite.server.wire.chat import ChatRequest
from thranite.server.wire.plain import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from thranite.text.prompt import refuse_endless_text
from thranite.text.tokenizer import Tokenizer

_OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")


class TokenizeEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = decode(body, TokenizeRequest)
        context = self._models.get(request.model)
        await reply.json(await context.in_thread(lambda: _tokenize(request, context)))


def _tokenize(request: TokenizeRequest, context: ServerContext) -> TokenizeAnswer:
    tokenizer = _tokenizer(context, "prompt")
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either prompt or messages", "prompt")
    if request.prompt is not None:
        _refuse_chat_fields(request)
        text, param, special = request.prompt, "prompt", request.add_special_tokens is not False
    else:
        text, param, special = _rendered(request, tokenizer, context), "messages", bool(request.add_special_tokens)
    refuse_endless_text(text, tokenizer, context.client.info, param)
    ids = tokenizer.encode(text, special)
    strings = None
    if request.return_token_strs:
        strings = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    return TokenizeAnswer(len(ids), context.client.info.max_model_len, ids, strings)


def _refuse_chat_fields(request: TokenizeRequest) -> None:
    for name in _OF_MESSAGES:
        if getattr(request, name) is not None:
            raise InvalidRequest(f"{name} is only allowed with messages", name)


def _rendered(request: TokenizeRequest, tokenizer: Tokenizer, context: ServerContext) -> str:
    chat = ChatRequest(
        model=request.model or "",
        messages=request.messages or [],
        tools=request.tools,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    return render(chat, plan_tools(chat, tokenizer, context.settings.tool_call_parser), tokenizer)


class DetokenizeEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = decode(body, DetokenizeRequest)
        context = self._models.get(request.model)
        tokenizer = _tokenizer(context, "tokens")
        most = context.client.info.max_model_len
        if len(request.tokens) > most:
            raise InvalidRequest(
                f"{len(request.tokens)} tokens; at most {most}, the model's length, are taken", "tokens"
            )
        if any(not 0 <= token < context.client.info.vocab_size for token in request.tokens):
            raise InvalidRequest("tokens holds an id that is not in the vocabulary", "tokens")
        text = await context.in_thread(lambda: tokenizer.decode(request.tokens, skip_special_tokens=False))
        await reply.json(DetokenizeAnswer(text))


def _tokenizer(context: ServerContext, param: str) -> Tokenizer:
    if context.tokenizer is None:
        raise InvalidRequest("this server runs without a tokenizer", param, "tokenizer_missing")
    return context.tokenizer
