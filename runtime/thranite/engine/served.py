"""An engine for servers: what requests may ask for later is made ready before the first one comes."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from thranite.config import EngineConfig
from thranite.engine.build import build_engine
from thranite.engine.client import EngineInfo
from thranite.engine.engine import Engine
from thranite.engine.progress import Progress

if TYPE_CHECKING:
    from thranite.parallel.ranks import RankWatcher


PROMPT_TIME_RATIO = 2.0  # a step that decodes takes about three times as long with prompts as without


def build_served_engine(config: EngineConfig, progress: Progress, watcher: RankWatcher) -> tuple[Engine, EngineInfo]:
    """`build_engine` with a server's defaults, and the vocabulary read for grammars: it takes about a second for
    100,000 tokens."""
    if config.prompt_time_ratio is None:
        config = replace(config, prompt_time_ratio=PROMPT_TIME_RATIO)
    engine, info = build_engine(config, progress, watcher)
    grammars = engine.settings.grammars
    if grammars is not None and find_spec("llguidance") is not None:
        progress.stage("read vocabulary")
        grammars.load()
    return engine, info
