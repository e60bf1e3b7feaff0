"""Processes that generate load: orders as JSON on their stdin, results as JSON on their stdout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from thranite.errors import ThraniteError

START_SECONDS = 3.0  # for a process to be up and its requests to be made, before the clock starts


def run_workers(command: Sequence[str], orders: Sequence[Any]) -> list[Any]:
    """Run `command` for each of `orders` at once; their results in order. Raises ThraniteError."""
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in orders]
    try:
        for process, order in zip(processes, orders, strict=True):
            assert process.stdin is not None
            json.dump(order, process.stdin)
            process.stdin.close()
        results = [process.stdout.read() for process in processes if process.stdout is not None]
    finally:
        codes = [_end(process) for process in processes]
    if any(codes):
        raise ThraniteError(f"a process of the load generator ended with {codes}")
    return [json.loads(result) for result in results]


def _end(process: subprocess.Popen[str]) -> int:
    """A worker that closed its stdout is done; one that an error left behind is not waited for."""
    if process.stdout is not None:
        process.stdout.close()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
