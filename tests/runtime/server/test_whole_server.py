"""The wide wire on a whole server: supervisor, server process, engine process on the null device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from websockets.sync.client import connect

from tests.support.browser import CHROMIUM, browse
from tests.support.grammar_engine import assert_valid
from tests.support.null_model import model_directory
from tests.support.running_server import RunningServer, running_server
from tests.support.tool_chats import HERMES, TOOLS, WEATHER

MODEL = "tiny"
USER: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
DENSE: Any = {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = Path(tmp_path_factory.mktemp("server"))
    template = directory / "template.jinja"
    template.write_text(HERMES)
    engine = {
        "model": model_directory(directory / "model"),
        "skip_tokenizer_init": False,
        "null_step_seconds": 0.002,
        "max_num_seqs": 8,
    }
    with running_server(directory, "null", engine, served_model_name=[MODEL], chat_template=str(template)) as running:
        running.wait_ready()
        yield running


def test_structured_output_crosses_the_processes(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.api_url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=USER, n=3, max_tokens=300, extra_body={**DENSE, "ignore_eos": True}
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert_valid(choice.message.content or "", SCHEMA)
        pieces = client.completions.create(
            model=MODEL, prompt="x", max_tokens=30, stream=True, extra_body={"guided_choice": ["left", "right"]}
        )
        assert "".join(piece.choices[0].text for piece in pieces) in ("left", "right")
        with pytest.raises(openai.BadRequestError, match="not"):
            client.completions.create(model=MODEL, prompt="x", extra_body={"guided_json": {"not": {}}})
        contradiction = {"guided_choice": ["yes"], "allowed_token_ids": [0, 1]}
        with pytest.raises(openai.BadRequestError, match="no token that the request's other parameters allow"):
            client.completions.create(model=MODEL, prompt="x", extra_body=contradiction)


def test_forced_tool_calls(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.api_url}/v1", api_key="none", max_retries=0) as client:
        named: Any = {"type": "function", "function": {"name": "weather"}}
        for seed in range(40):
            answer = client.chat.completions.create(
                model=MODEL, messages=USER, tools=TOOLS, tool_choice=named, max_tokens=600, seed=seed
            )
            choice = answer.choices[0]
            if choice.finish_reason == "tool_calls":
                break
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert_valid(call.function.arguments, WEATHER["parameters"])


def test_anthropic_and_responses(server: RunningServer) -> None:
    with anthropic.Anthropic(base_url=server.api_url, api_key="none", max_retries=0) as client:
        with client.messages.stream(model=MODEL, max_tokens=12, messages=USER) as stream:
            message = stream.get_final_message()
        assert message.usage.output_tokens <= 12
    with openai.OpenAI(base_url=f"{server.api_url}/v1", api_key="none", max_retries=0) as openai_client:
        response = openai_client.responses.create(model=MODEL, input="hello", max_output_tokens=16)
        assert response.usage is not None
        assert response.usage.output_tokens <= 16


def test_a_socket_on_the_whole_server(server: RunningServer) -> None:
    with connect(server.api_url.replace("http", "ws") + "/ws/generate") as socket:
        for name in ("a", "b"):
            ask = {"type": "generate", "id": name, "prompt": "x", "max_tokens": 20, "ignore_eos": True}
            socket.send(json.dumps(ask))
        done: dict[str, Any] = {}
        while len(done) < 2:
            message = json.loads(socket.recv(timeout=20))
            if message["type"] == "done":
                done[message["id"]] = message
        assert all(len(message["token_ids"]) == 20 for message in done.values())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(server: RunningServer, tmp_path: Path) -> None:
    with browse(server.api_url + "/") as page:
        page.wait(f"document.querySelector('#model').textContent === {json.dumps(MODEL)}")
        page.run("document.querySelector('#text').value = 'hello there'")
        page.run("document.querySelector('#ask').requestSubmit()")
        page.wait("document.querySelector('.assistant')?.textContent.length > 0")
        page.wait("document.querySelector('.note')?.textContent.includes('tokens, first after')")
        assert page.run("document.querySelector('.user').textContent") == "hello there"
        page.wait("[...document.querySelectorAll('polyline')].every(l => l.getAttribute('points')?.includes(' '))")
        shown = page.run("[...document.querySelectorAll('figcaption output')].map(o => o.textContent)")
        assert len(shown) == 4
        assert all(text[0].isdigit() for text in shown), shown
        assert page.problems == []
        outside = [url for url in page.requested if not url.startswith((server.api_url, "data:"))]
        assert outside == []
        picture = page.screenshot()
        (tmp_path / "page.png").write_bytes(picture)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
