"""The demo: serve a real model on this machine, ask it three questions at once, show what the engine did, stop it.

    make demo-engine

Uses the `openai` client against `thranite serve`, as any program would. Exits 0 only if every answer came and the
server stopped cleanly.
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel

from dev.fetch_smollm2 import NAME, fetch, is_present, model_directory

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 300, 60
MAX_TOKENS = 96
SYSTEM = (
    "You are a friendly assistant who answers in two or three short and plain sentences. You never invent facts, you "
    "prefer simple words over technical ones, and you finish every answer with a full stop. If you do not know, say so."
)
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Why is the sky blue?",
    "How do rowers on a trireme keep the same pace?",
)
console = Console(highlight=False)


@dataclass
class Answer:
    """One streamed answer as it grows. Times are seconds since it was asked for."""

    question: str
    text: str = ""
    first_token: float = 0.0
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def panel(self) -> Panel:
        return Panel(self.text or "…", title=self.question, title_align="left", subtitle=self.summary() or None)

    def summary(self) -> str:
        if not self.seconds:
            return ""
        return f"{self.completion_tokens} tokens in {self.seconds:.1f} s, the first after {self.first_token:.2f} s"


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    peak_kv: float = field(default=0.0)

    def admin(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the admin port; status 0 while nothing listens."""
        connection = http.client.HTTPConnection(HOST, self.admin_port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Unlabelled by model: the server has one. Sums what has further labels."""
        result: dict[str, float] = {}
        for family in text_string_to_metric_families(self.admin("/metrics")[1]):
            for sample in family.samples:
                result[sample.name] = result.get(sample.name, 0.0) + sample.value
        return result


@contextmanager
def serving(model: Path) -> Iterator[Server]:
    """`thranite serve` until the end of the block; its log goes to this terminal."""
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "thranite", "serve", str(model), "--served-model-name", NAME, "--host", HOST]
    command += ["--port", str(port), "--admin-host", HOST, "--admin-port", str(admin_port), "--drain-delay", "0"]
    console.print(f"[bold]$ {' '.join(['thranite', *command[3:]])}", soft_wrap=True)
    process = subprocess.Popen(command)
    try:
        yield Server(process, port, admin_port)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [int(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_until_ready(server: Server) -> None:
    give_up = time.monotonic() + START_SECONDS
    while server.admin("/readyz")[0] != http.client.OK:
        if server.process.poll() is not None:
            sys.exit(f"the server ended with code {server.process.returncode} while it started")
        if time.monotonic() > give_up:
            sys.exit(f"the server was not ready after {START_SECONDS} s")
        time.sleep(0.1)


def ask(server: Server, answer: Answer) -> Answer:
    """Stream one answer into `answer`."""
    client = OpenAI(base_url=f"http://{HOST}:{server.port}/v1", api_key="none")
    began = time.monotonic()
    stream = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": answer.question}],
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            answer.first_token = answer.first_token or time.monotonic() - began
            answer.text += text
        if chunk.usage is not None:
            answer.prompt_tokens, answer.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    answer.seconds = time.monotonic() - began
    return answer


def ask_all(server: Server) -> list[Answer]:
    """The questions at once; answers are drawn as they arrive, or printed as they end where there is no terminal."""
    answers = [Answer(question) for question in QUESTIONS]
    with ThreadPoolExecutor(len(answers)) as pool, watching(server):
        running = [pool.submit(ask, server, answer) for answer in answers]
        if console.is_terminal:
            with Live(console=console, refresh_per_second=10) as live:
                while not all(future.done() for future in running):
                    live.update(Group(*(answer.panel() for answer in answers)))
                    time.sleep(0.1)
                live.update(Group(*(answer.panel() for answer in answers)))
        for future in as_completed(running):
            answer = future.result()  # raises what went wrong
            if not console.is_terminal:
                console.print(f"\n> {answer.question}\n{answer.text.strip()}\n({answer.summary()})", soft_wrap=True)
    return answers


@contextmanager
def watching(server: Server) -> Iterator[None]:
    """Note the KV cache's highest use within the block."""
    stop = Event()

    def watch() -> None:
        while not stop.wait(0.1):
            server.peak_kv = max(server.peak_kv, server.metrics()["thranite_kv_cache_usage_ratio"])

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def report(server: Server, answers: list[Answer], seconds: float) -> None:
    tokens = sum(answer.completion_tokens for answer in answers)
    before = server.metrics()
    again = ask(server, Answer(QUESTIONS[0]))
    after = server.metrics()
    hits = after["thranite_prefix_cache_hits_total"] - before["thranite_prefix_cache_hits_total"]
    blocks = after["thranite_kv_blocks"]
    console.print(f"\n[bold]{tokens / seconds:.1f} tokens/s[/] ({tokens} tokens of {len(answers)} answers at once)")
    console.print(f"KV cache: {server.peak_kv:.1%} of {blocks:.0f} blocks at the highest")
    console.print(
        f"prefix cache: the first question asked again found {hits:.0f} of its {again.prompt_tokens} prompt tokens; "
        f"first token after {again.first_token:.2f} s instead of {answers[0].first_token:.2f} s",
        soft_wrap=True,
    )


def stop(server: Server) -> None:
    """SIGTERM; the server must end by itself with code 0."""
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(timeout=STOP_SECONDS)
    if code != 0:
        sys.exit(f"the server stopped with code {code}")
    console.print("the server stopped cleanly")


def main() -> int:
    model = model_directory()
    if not is_present(model):
        fetch(model)
    with serving(model) as server:
        wait_until_ready(server)
        began = time.monotonic()
        answers = ask_all(server)
        report(server, answers, time.monotonic() - began)
        stop(server)
    console.print(f"\nTo keep it up: thranite serve {model}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
