"""Chat templates that take tools, one a notation, and functions to call."""

from __future__ import annotations

from typing import Any

HERMES = (
    "{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools> answer in <tool_call></tool_call>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = HERMES + (
    "{# a model that reasons: <think> … </think> #}"
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
BEGUN = HERMES + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}{# </think> #}"
LLAMA = HERMES.replace("answer in <tool_call></tool_call>", 'answer as {"name": …, "parameters": …}').replace(
    "<|im_start|>", "<|start_header_id|>"
).replace("<tool_call>", "").replace("</tool_call>", "")  # fmt: skip
MISTRAL = HERMES.replace("answer in <tool_call></tool_call>", "").replace("<tool_call>", "[TOOL_CALLS]").replace(
    "</tool_call>", ""
)  # fmt: skip
TEMPLATES = {"hermes": HERMES, "llama3_json": LLAMA, "mistral": MISTRAL}

WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "the weather of a place",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "maxLength": 6}, "days": {"$ref": "#/$defs/days"}},
        "required": ["place"],
        "additionalProperties": False,
        "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
    },
}
CLOCK: dict[str, Any] = {
    "name": "clock",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS: Any = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
