"""`serve`: everything around the supervisor's loop: sockets, signals, logs, exit code, termination log."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from thranite.config import EngineConfig
from thranite.errors import ExitCode, StartupError
from thranite.ipc.child import configure_logging
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.listeners import bind, bind_shared, private_directory, url
from thranite.supervisor.signals import SignalInbox
from thranite.supervisor.termination import Outcome, check_termination_log, write_termination_log

if TYPE_CHECKING:
    from thranite.supervisor.children import ChildCommands

logger = logging.getLogger("thranite")


def serve(engine_config: EngineConfig, serve_config: ServeConfig, commands: ChildCommands | None = None) -> int:
    """Serve until a signal or a failure ends it; the exit code says which. Prints and logs what went wrong."""
    with closing(SignalInbox()) as signals:
        configure_logging(serve_config.log_level)
        try:
            outcome = _serve(engine_config, serve_config, commands, signals)
        except StartupError as error:
            outcome = Outcome(error.exit_code, "start", f"{type(error).__name__}: {error.message}", error.hint)
        except Exception as error:
            logger.exception("the supervisor failed")
            outcome = Outcome(ExitCode.FAILURE, "supervise", f"{type(error).__name__}: {error}")
        _report(outcome, serve_config.termination_log_path)
    return int(outcome.exit_code)


def _report(outcome: Outcome, path: str) -> None:
    if outcome.cause is None:
        return
    write_termination_log(path, outcome)
    logger.error("%s failed: %s", outcome.stage, outcome.cause)
    if outcome.hint is not None:
        logger.error("hint: %s", outcome.hint)


def _serve(
    engine_config: EngineConfig, config: ServeConfig, commands: ChildCommands | None, signals: SignalInbox
) -> Outcome:
    from thranite.supervisor.supervisor import Supervisor  # its packages load after signals are taken

    check_termination_log(config.termination_log_path)
    with ExitStack() as stack:
        config = dataclasses.replace(config, server_processes=config.server_count())
        listeners = bind_shared(config.host, config.port, "port", config.server_count())
        for listener in listeners:
            stack.enter_context(listener)
        admin_listener = stack.enter_context(bind(config.admin_host, config.admin_port, "admin_port"))
        directory = stack.enter_context(private_directory(config.runtime_dir))
        logger.info(
            "API at %s/v1, admin port at %s", url(listeners[0], config.ssl_certfile is not None), url(admin_listener)
        )

        async def run() -> Outcome:
            supervisor = Supervisor(engine_config, config, listeners, admin_listener, directory, commands)
            signals.listen(asyncio.get_running_loop(), supervisor.on_signal)
            try:
                return await supervisor.run()
            finally:
                signals.ignore()

        return asyncio.run(run())
