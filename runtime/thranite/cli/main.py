"""`thranite`: one module a command, imported only when it is called, so that `thranite drain` never pays for torch.

A command module has `add_arguments(parser)` and `run(args) -> int`. Every failure meant for the user is one message on
stderr and an exit code (`thranite.errors.ExitCode`), never a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from thranite import __version__
from thranite.errors import ExitCode, InvalidRequest, StartupError, ThraniteError


@dataclass(frozen=True, slots=True)
class Command:
    module: str
    summary: str
    usage: str = "MODEL [options]"


COMMANDS = {
    "serve": Command("thranite.cli.serve", "serve a model over HTTP, OpenAI's API"),
    "generate": Command("thranite.cli.generate", "complete prompts in this process"),
    "check": Command("thranite.cli.check", "say from config.json alone whether a model fits a GPU"),
    "compile": Command("thranite.cli.compile", "compile a model's GPU kernels ahead, without a GPU"),
    "download": Command("thranite.cli.download", "fetch a model of the Hugging Face hub", "MODEL --to DIR [options]"),
    "import-gguf": Command(
        "thranite.cli.import_gguf", "turn a GGUF file into a model directory", "FILE --to DIR [options]"
    ),
    "bench": Command("thranite.cli.bench", "measure the engine", "KIND [options]"),
    "drain": Command("thranite.cli.drain", "let a running server finish its requests, and wait for it", "[options]"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        _overview().parse_args(arguments or ["--help"])  # --help, --version, or an error: each one exits
    name, *rest = arguments
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"thranite {name}",
        usage=f"thranite {name} {command.usage}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    if os.getpid() == 1 and name != "serve":  # which has handlers of its own
        signal.signal(signal.SIGTERM, _end)
    try:
        return int(module.run(args))
    except StartupError as error:
        return _fail(str(error), error.exit_code)
    except InvalidRequest as error:
        return _fail(f"{error.param}: {error.message}" if error.param else error.message, ExitCode.USAGE)
    except ThraniteError as error:
        return _fail(str(error), ExitCode.FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _end(*_: object) -> NoReturn:
    """What SIGTERM does by default, but not to a container's first process: the kernel drops it there."""
    os._exit(128 + signal.SIGTERM)


def _fail(message: str, code: int) -> int:
    print(f"thranite: error: {message}", file=sys.stderr)
    return int(code)


def _overview() -> argparse.ArgumentParser:
    """The parser of `thranite` alone; it never sees a command's arguments."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="thranite",
        usage="thranite COMMAND …",
        description="Serve large language models.",
        epilog=f"commands:\n{listing}\n\n`thranite COMMAND --help` explains each one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"thranite {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written; wider flags before help wraps."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
