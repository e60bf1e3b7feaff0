"""What becomes of the models beside the first: pure decisions on messages, wishes and time.

queued ── its turn to load ── loading ── every server process answers for it ── ready
   └───── backoff ────── failed ── (engine ended, hung, or could not load; any phase) ┘
unloading: no new requests; open ones end, at the latest at the deadline; then the engine ends and the model is gone

Models load one after another, so that each finds the memory that the others leave. A failure costs the model's own
requests alone. Inputs are noted as they come; `advance` returns what follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from thranite.errors import Rejected
from thranite.ipc import control
from thranite.ipc.control import ModelPhase, ModelState
from thranite.server.errors import ModelUnknown
from thranite.supervisor.actions import Action, End, Forget, Kill, Launch, Order
from thranite.supervisor.drain import FLUSH_SECONDS
from thranite.supervisor.engine_life import EngineLife
from thranite.supervisor.fleet import Fleet
from thranite.supervisor.sleep import CUT_OFF, Sleeper
from thranite.supervisor.termination import describe_exit

logger = logging.getLogger("thranite")

FIRST_RETRY_SECONDS = 1.0  # doubled with every failure
LONGEST_RETRY_SECONDS = 300.0
STABLE_SECONDS = 300.0  # served for so long, earlier failures are forgotten
UNLOADED = "the model is unloaded and this request did not finish in time"


@dataclass(slots=True)
class _Model:
    """`engine`: of the process that runs, if one does. `since`: when the phase began. `served_by`, `gone`: the server
    processes that answer for it, or have nothing left of it."""

    definition: control.AddModel
    child: str
    since: float
    phase: ModelPhase = ModelPhase.QUEUED
    engine: EngineLife | None = None
    ending: bool = False
    cause: str | None = None
    failures: int = 0
    served_by: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    deadline: float = float("inf")
    cut: bool = False

    @property
    def retry_seconds(self) -> float:
        return min(FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 16), LONGEST_RETRY_SECONDS)

    def enter(self, phase: ModelPhase, now: float) -> None:
        self.phase, self.since = phase, now

    def state(self) -> ModelState:
        loading = self.engine if self.phase is ModelPhase.LOADING else None
        failed = self.phase is ModelPhase.FAILED
        ready = self.phase is ModelPhase.READY and self.engine is not None
        stage = None if loading is None else ("connect" if loading.ready else loading.stage)
        return ModelState(
            name=self.definition.name,
            phase=self.engine.phase if ready and self.engine is not None else self.phase,
            root=self.definition.config.model,
            stage=stage,
            progress=None if loading is None or loading.ready else loading.progress,
            cause=self.cause,
            retry_seconds=self.retry_seconds if failed else None,
        )


class AddedModels:
    """`fleet`: the server processes. `stall_timeout`: the option."""

    def __init__(self, fleet: Fleet, stall_timeout: float | None, clock: Callable[[], float]) -> None:
        self._fleet, self._stall_timeout, self._clock = fleet, stall_timeout, clock
        self._models: dict[str, _Model] = {}
        self._by_child: dict[str, _Model] = {}
        self._todo: list[Action] = []

    # --- what there is

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def owns(self, child: str) -> bool:
        """Whether a child is the engine of one of them."""
        return child in self._by_child

    @property
    def engines(self) -> list[str]:
        """The engine processes that run."""
        return [model.child for model in self._models.values() if model.engine is not None]

    @property
    def definitions(self) -> list[control.AddModel]:
        """What a server process that starts now must know."""
        return [model.definition for model in self._models.values() if model.phase is not ModelPhase.UNLOADING]

    def states(self) -> tuple[ModelState, ...]:
        return tuple(model.state() for model in self._models.values())

    def state(self, name: str) -> ModelState:
        return self._models[name].state()

    def sleeper(self, name: str, known: Sequence[str]) -> Sleeper:
        """Of a model that is ready. Raises Rejected or ModelUnknown."""
        model = self._models.get(name)
        if model is None:
            raise ModelUnknown(name, known)
        if model.phase is not ModelPhase.READY or model.engine is None:
            raise Rejected(f"the model {name!r} is {model.phase}, not ready", "not_ready")
        return model.engine.sleeper

    # --- wishes

    def load(self, definition: control.AddModel) -> None:
        """Raises Rejected if there is a model of that name."""
        name = definition.name
        if name in self._models:
            phase = self._models[name].phase
            raise Rejected(f"there is a model {name!r} already, which is {phase}: unload it first", "exists")
        model = _Model(definition, f"{name} engine", self._clock())
        self._models[name] = self._by_child[model.child] = model
        self._to_servers(definition)

    def unload(self, name: str, seconds: float, known: Sequence[str]) -> None:
        """`seconds`: for open requests to end. Asked again, the earlier deadline counts. Raises ModelUnknown."""
        model, now = self._models.get(name), self._clock()
        if model is None:
            raise ModelUnknown(name, known)
        model.deadline = min(model.deadline, now + seconds)
        if model.phase is ModelPhase.UNLOADING:
            return
        logger.info("model %s: unloading, within %.0f s", name, seconds)
        if model.engine is not None and not model.engine.ready:
            self._end(model)
        model.gone.clear()  # servers that ended earlier have successors that answer for it
        model.enter(ModelPhase.UNLOADING, now)
        self._to_servers(control.RemoveModel(name))

    # --- inputs

    def take(self, child: str, message: control.FromChild) -> None:
        """From one of the engines."""
        engine = self._by_child[child].engine
        if engine is not None:
            engine.take(message, self._clock())

    def told(self, server: str, message: control.ModelServed | control.ModelRefused | control.ModelGone) -> None:
        """From a server process."""
        model = self._models.get(message.name)
        if model is None:
            return
        match message:
            case control.ModelServed():
                model.served_by.add(server)
            case control.ModelGone():
                model.gone.add(server)
            case control.ModelRefused(_, cause):
                if model.phase in (ModelPhase.LOADING, ModelPhase.READY):
                    self._fail(model, cause)
                    self._end(model)

    def engine_ended(self, child: str, returncode: int) -> None:
        engine = self._by_child[child].engine
        how = describe_exit(child, returncode)
        self._lost(child, how if engine is None else engine.cause(how))

    def engine_not_started(self, child: str, cause: str) -> None:
        """The system has refused its process."""
        self._lost(child, cause)

    def _lost(self, child: str, cause: str) -> None:
        model = self._by_child[child]
        model.engine, model.ending = None, False
        model.served_by.clear()
        if model.phase in (ModelPhase.LOADING, ModelPhase.READY):
            self._fail(model, cause)

    def server_ended(self, server: str) -> None:
        """The one that takes its place begins with nothing."""
        for model in self._models.values():
            model.served_by.discard(server)
            model.gone.add(server)

    # --- decisions

    def advance(self, now: float, may_load: bool) -> list[Action]:
        """`may_load`: the first model is up, and the server is not about to end."""
        for model in list(self._models.values()):
            if model.engine is not None:
                model.engine.advance(now)
            match model.phase:
                case ModelPhase.QUEUED:
                    if may_load and model.engine is None and not self._loading():
                        self._launch(model, now)
                case ModelPhase.LOADING | ModelPhase.READY:
                    self._judge(model, now)
                case ModelPhase.FAILED:
                    if now >= model.since + model.retry_seconds:
                        model.enter(ModelPhase.QUEUED, now)
                case ModelPhase.UNLOADING:
                    self._advance_unloading(model, now)
        actions, self._todo = self._todo, []
        return actions

    def _loading(self) -> bool:
        """Whether an engine takes memory now, or is about to give it back."""
        return any(
            model.ending or (model.engine is not None and not model.engine.ready) for model in self._models.values()
        )

    def _launch(self, model: _Model, now: float) -> None:
        model.enter(ModelPhase.LOADING, now)
        model.engine, model.cause = EngineLife(self._stall_timeout), None
        self._todo.append(Launch(model.child, model.definition))
        self._to_servers(model.definition)  # again: one of them may have given it up

    def _judge(self, model: _Model, now: float) -> None:
        engine = model.engine
        assert engine is not None
        verdict = engine.hang()
        if verdict is not None:
            self._fail(model, verdict)
            self._to_servers(control.CutOff(verdict, model.definition.name))
            self._end(model, hung=True)
        elif model.phase is ModelPhase.READY:
            self._advance_sleep(model, engine.sleeper, now)
            if model.failures and now - model.since >= STABLE_SECONDS:
                model.failures = 0
        elif engine.ready and self._fleet.ready_names and model.served_by >= self._fleet.ready_names:
            logger.info("model %s: ready after %.1f s", model.definition.name, now - model.since)
            model.enter(ModelPhase.READY, now)

    def _advance_sleep(self, model: _Model, sleeper: Sleeper, now: float) -> None:
        orders, cut = sleeper.advance(now)
        self._todo += [Order(model.child, order) for order in orders]
        if cut:
            self._to_servers(control.CutOff(CUT_OFF, model.definition.name))

    def _advance_unloading(self, model: _Model, now: float) -> None:
        name = model.definition.name
        nothing_open = model.gone >= set(self._fleet.names)
        if not nothing_open and now >= model.deadline and not model.cut:
            model.cut = True
            self._to_servers(control.CutOff(UNLOADED, name))
        if not nothing_open and now < model.deadline + FLUSH_SECONDS:
            return
        if model.engine is not None:
            self._end(model)
            return
        logger.info("model %s: unloaded", name)
        del self._models[name], self._by_child[model.child]
        self._todo.append(Forget(model.child, name))

    def _fail(self, model: _Model, cause: str) -> None:
        model.failures += 1
        model.cause = cause
        model.enter(ModelPhase.FAILED, self._clock())
        logger.error(
            "model %s failed: %s; it is loaded again in %.0f s", model.definition.name, cause, model.retry_seconds
        )

    def _end(self, model: _Model, hung: bool = False) -> None:
        """One that still loads would not listen."""
        if model.engine is not None and not model.ending:
            model.ending = True
            self._todo.append(End(model.child, hung) if model.engine.ready else Kill(model.child))

    def _to_servers(self, message: control.ToChild) -> None:
        self._todo += [Order(name, message) for name in self._fleet.names]
