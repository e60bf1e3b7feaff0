"""`thranite-operator`: turn InferenceService objects into serving pods.

`thranite-operator explain` says why a service has the replicas it has; `thranite-operator simulate` replays what the
autoscaler recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from thranite_operator import credentials
from thranite_operator.runner import Runner
from thranite_operator.settings import Settings, operator_version

LEVELS = ("debug", "info", "warning", "error")
# Words that may stand before the options; without one it serves.
COMMANDS = {"explain": "thranite_operator.explain", "simulate": "thranite_operator.simulate"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="thranite-operator", description=__doc__, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"thranite-operator {operator_version()}")
    image = os.environ.get("THRANITE_RUNTIME_IMAGE")
    top.add_argument(
        "--runtime-image", default=image, required=image is None, metavar="IMAGE",
        help="image of model pods that name none [THRANITE_RUNTIME_IMAGE]",
    )  # fmt: skip
    top.add_argument(
        "--namespace", action="append", default=[], metavar="NAME",
        help="watch this namespace alone, repeatable (default: all)",
    )  # fmt: skip
    own = os.environ.get("POD_NAMESPACE", Settings.namespace)
    top.add_argument(
        "--operator-namespace", default=own, metavar="NAME",
        help="namespace of the operator, for NetworkPolicies (default: %(default)s) [POD_NAMESPACE]",
    )  # fmt: skip
    top.add_argument(
        "--monitoring-namespace", default=Settings.monitoring_namespace, metavar="NAME",
        help="namespace that may scrape model pods, for NetworkPolicies (default: %(default)s)",
    )  # fmt: skip
    top.add_argument("--host", default=Settings.host, help="address of probes and metrics (default: %(default)s)")
    top.add_argument("--port", type=int, default=Settings.port, help="their port (default: %(default)s)")
    top.add_argument(
        "--workers", type=int, default=Settings.workers, metavar="N",
        help="services reconciled at once (default: %(default)s)",
    )  # fmt: skip
    top.add_argument(
        "--resync-seconds", type=float, default=Settings.resync_seconds, metavar="S",
        help="every service is reconciled at least so often (default: %(default)s)",
    )  # fmt: skip
    top.add_argument("--log-level", choices=LEVELS, default="info", help="least severity (default: %(default)s)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return _command(words[0], words[1:])
    args = parser().parse_args(words)
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns of its thread at each start
    settings = Settings(
        runtime_image=args.runtime_image,
        namespace=args.operator_namespace,
        monitoring_namespace=args.monitoring_namespace,
        namespaces=tuple(args.namespace),
        host=args.host,
        port=args.port,
        workers=args.workers,
        resync_seconds=args.resync_seconds,
    )
    asyncio.run(_run(settings))
    return 0


def _command(name: str, words: Sequence[str]) -> int:
    module = importlib.import_module(COMMANDS[name])
    commands = argparse.ArgumentParser(
        prog=f"thranite-operator {name}", description=module.__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.add_arguments(commands)
    return int(module.run(commands.parse_args(words)))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await Runner(settings, credentials.connection).run(stop)
