"""GET /v1/models."""

from __future__ import annotations

from typing import Literal

import msgspec

from thranite.ipc.control import ModelPhase


class ModelStatus(msgspec.Struct):
    """`stage` and `progress` (of the stage, from 0 to 1) tell how far a loading model is, `cause` why one failed."""

    phase: ModelPhase
    stage: str | None = None
    progress: float | None = None
    cause: str | None = None
    retry_seconds: float | None = None  # until a failed one is loaded again


class ModelCard(msgspec.Struct):
    id: str
    created: int
    root: str
    max_model_len: int | None  # None until its engine has started
    status: ModelStatus
    object: Literal["model"] = "model"
    owned_by: str = "thranite"
    parent: None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"
