from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support import tiny_tokenizers
from tests.support.tiny_tokenizers import CHATML
from thranite.errors import InvalidRequest, UnsupportedModel
from thranite.text.chat_template import ChatTemplate
from thranite.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "hello"}
CHAT = [{"role": "system", "content": "be kind"}, USER, {"role": "assistant", "content": " hello  "}]
TRIMMING = CHATML.replace("message.content", "message.content | trim")
# What real templates use: loop controls, namespaces, macros, training blocks, tojson, dates, special tokens.
ELABORATE = """{{ bos_token }}{%- macro say(text) %}[{{ text }}]{% endmacro %}
{%- set seen = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set seen.count = seen.count + 1 %}
    {%- generation %}{{ say(message.content) }}{% endgeneration %}
{%- endfor %}
{{- seen.count }} {{ {'a': '<é>', 'b': [1, none]} | tojson }} {{ strftime_now('%Y') | length }}
{%- if tools %} {{ tools | tojson(indent=2) }}{% endif %}{% if thinking is defined %} {{ thinking }}{% endif %}
{%- if add_generation_prompt %}{{ '>' }}{% endif %}"""


@pytest.mark.parametrize("template", [CHATML, TRIMMING, ELABORATE], ids=["chatml", "trimming", "elaborate"])
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"add_generation_prompt": True, "thinking": False, "tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    ids=["prompt", "no-prompt", "continue", "tools"],
)
def test_prompts_equal_transformers(tmp_path: Path, template: str, options: dict[str, Any]) -> None:
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path, chat_template=template)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    assert ours.apply_chat_template(CHAT, **options) == theirs.apply_chat_template(CHAT, return_dict=False, **options)


def test_where_templates_are_found(tmp_path: Path) -> None:
    tiny_tokenizers.save(
        tiny_tokenizers.byte_level(),
        tmp_path,
        chat_template=[{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "with tools"}],
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template().source == "listed"
    assert tokenizer.chat_template(tools=True).source == "with tools"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert Tokenizer.load(tmp_path).chat_template().source == "json"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(tmp_path).chat_template().source == "file"
    assert tokenizer.with_chat_template("mine").chat_template(tools=True).source == "mine"


def test_a_model_without_template() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(tiny_tokenizers.byte_level()).apply_chat_template([USER])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.nothing() }}", "refuses"),
        ("{{ messages[0].role + 1 }}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_the_client_s_error(source: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as error:
        ChatTemplate(source, {}).render([USER])
    assert error.value.param == "messages"


def test_a_template_that_does_not_parse_stops_the_start() -> None:
    with pytest.raises(UnsupportedModel, match="line 2"):
        ChatTemplate("{% if x %}\n{% endfor %}", {})


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
    ],
)
def test_contradictions(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        ChatTemplate(CHATML, {}).render([USER], **options)
    assert error.value.param == param


def test_a_message_that_calls_tools_is_not_continued_without_them() -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(InvalidRequest, match="calls tools"):
        ChatTemplate(CHATML, {}).render([message], add_generation_prompt=False, continue_final_message=True)


def test_null_keys_are_as_absent() -> None:
    template = ChatTemplate("{{ 'tool_calls' in messages[0] }}", {})
    assert template.render([{**USER, "tool_calls": None}]) == "False"
