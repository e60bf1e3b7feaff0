"""Settings of every test run."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.fixtures import cluster, local

__all__ = ["cluster", "local"]

# Tiny models gain nothing from threads, and threads that wait for each other on a busy machine cost a factor of ten.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    from tests.support.interpreter import remember_replacements

    remember_replacements(interpreter)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A worker's folder is named as briefly as can be: a path of a socket in it has 107 characters at most."""
    if hasattr(config, "workerinput"):
        config.option.basetemp = str(Path(config.option.basetemp).with_name(config.workerinput["workerid"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers tell tests apart by their ids, and would run one of those that share theirs."""
    for node_id, count in Counter(item.nodeid for item in items).items():
        if count > 1:
            raise pytest.UsageError(f"{count} tests have the id {node_id}; give each its own")


def pytest_collection_finish() -> None:
    """What importing the tests made stays: else each full collection looks at it, which takes half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
