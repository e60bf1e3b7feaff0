"""What an engine can never run, whatever else it has to do. Pure: limits in, a refusal out."""

from __future__ import annotations

from thranite.engine.settings import EngineSettings
from thranite.errors import InvalidRequest
from thranite.known_ids import all_known
from thranite.request import EngineRequest


def check_request(request: EngineRequest, limits: EngineSettings) -> None:
    """Raises InvalidRequest."""
    length = len(request.prompt_token_ids)
    if length == 0:
        raise InvalidRequest("the prompt is empty: it needs at least one token", "prompt")
    most = limits.max_model_len - (request.params.pooling is None)  # a vector needs no room for output
    if length > most:
        raise InvalidRequest(
            f"the prompt has {length} tokens; at most {most} fit within the maximum length of {limits.max_model_len}"
            f"{'' if request.params.pooling else ', with one of output'}",
            "prompt",
            "context_length_exceeded",
        )
    if not all_known(request.prompt_token_ids, limits.vocab_size):
        raise InvalidRequest(f"the prompt holds a token id outside 0 to {limits.vocab_size - 1}", "prompt")
    if request.params.n > limits.max_num_seqs:
        raise InvalidRequest(f"n is {request.params.n}; at most {limits.max_num_seqs} sequences run at once", "n")
    if request.grammar is not None and limits.grammars is None:
        raise InvalidRequest("this engine runs without a tokenizer, which grammars need", "structured_outputs")
