"""Fetch a model of the Hugging Face hub into a directory, which is complete or absent, never half there.

Safetensors, configuration, tokenizer and chat template are fetched. An interrupted download resumes; two at once share
one; a finished directory returns at once, without asking the hub. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are read.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from thranite.cli.download_status import served
from thranite.cli.flags import add_flags, build
from thranite.config import option
from thranite.errors import ConfigError
from thranite.loader.device_memory import format_bytes
from thranite.loader.download import Download, Progress, download

LOG_SECONDS = 10.0  # between lines where no terminal shows a bar


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadConfig:
    model: str = field(metadata={"help": "hub id: owner/name"})
    to: str | None = option(None, "directory to fill; must be given")
    revision: str | None = option(None, "branch, tag or commit (default: the default branch)")
    token_file: str | None = option(None, "file with a hub token, instead of HF_TOKEN")
    admin_host: str = option("0.0.0.0", "address of the admin port")
    admin_port: int | None = option(None, "answer /metrics, /startupz and /livez here (default: nowhere)")

    def __post_init__(self) -> None:
        if self.to is None:
            raise ConfigError("--to is missing", "name the directory to fill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, DownloadConfig, "download")


def run(args: argparse.Namespace) -> int:
    config = build(DownloadConfig, args, os.environ)
    wanted = Download(config.model, Path(config.to or ""), config.revision, _token(config.token_file))
    progress, began = Progress(), time.monotonic()
    with ExitStack() as stack:
        if config.admin_port is not None:
            stack.enter_context(served(config.model, progress, config.admin_host, config.admin_port))
        stack.enter_context(_shown(progress))
        marker = download(wanted, progress, _say)
    seconds, size = time.monotonic() - began, sum(marker.files.values())
    _say(f"{wanted.model} at {marker.commit}: {format_bytes(size)} in {seconds:.1f} s")
    print(wanted.target)
    return 0


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {path}: {error.strerror}") from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """A bar on a terminal, a line now and then elsewhere."""
    stop = Event()
    thread = Thread(target=_draw_bar if sys.stderr.isatty() else _log_lines, args=(progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _log_lines(progress: Progress, stop: Event) -> None:
    while not stop.wait(LOG_SECONDS):
        if progress.total_bytes:
            _say(f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.total_bytes)}")


def _draw_bar(progress: Progress, stop: Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("download", total=None)
        while not stop.wait(0.2):
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes or None)
