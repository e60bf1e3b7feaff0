"""Serve a model: OpenAI's API on --port; probes, metrics and drain on --admin-port.

MODEL is a directory or a Hugging Face hub id. SIGTERM lets running requests finish (--drain-timeout); the exit code
is then 0. Failures name their stage and cause on stderr and in --termination-log-path.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from thranite.cli.flags import add_flags, build
from thranite.config import EngineConfig
from thranite.errors import StartupError
from thranite.supervisor.config import DEFAULT_TERMINATION_LOG, ServeConfig
from thranite.supervisor.termination import Outcome, write_termination_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, ServeConfig, "server")


def run(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> int:
    try:
        engine, server = build(EngineConfig, args, environ), build(ServeConfig, args, environ)
        from thranite.supervisor.main import serve

        return serve(engine, server)
    except StartupError as error:
        path = args.__dict__.get("termination_log_path") or environ.get("THRANITE_TERMINATION_LOG_PATH")
        outcome = Outcome(error.exit_code, "configure", error.message, error.hint)
        write_termination_log(path or DEFAULT_TERMINATION_LOG, outcome)
        raise
