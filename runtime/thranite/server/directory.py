"""The models that this server process answers for, and what is known of those it does not answer for (yet).

The supervisor says which models there are and how they fare (`note`); a model is served here once this process has its
tokenizer and a connection to its engine (`serve`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from thranite.engine.client import EngineClient
from thranite.ipc.control import ModelPhase, ModelState
from thranite.server.context import ServerContext
from thranite.server.errors import ModelNotReady, ModelUnknown
from thranite.server.settings import ServerSettings
from thranite.text.tokenizer import Tokenizer


class ModelDirectory:
    """Belongs to one event loop; `close` ends its threads."""

    def __init__(self, first_names: Sequence[str], tokenizer_threads: int) -> None:
        """`first_names`: of the first model, which is served from the moment that requests come."""
        self._first_names = tuple(first_names)
        self._threads = ThreadPoolExecutor(tokenizer_threads, "tokenizer")
        self._compiling = ThreadPoolExecutor(tokenizer_threads, "grammar")
        self._served: dict[str, ServerContext] = {}
        self._states: dict[str, ModelState] = {}

    # --- who is served

    def serve(self, client: EngineClient, tokenizer: Tokenizer | None, settings: ServerSettings) -> ServerContext:
        """Answer for a model under all its names from now on."""
        context = ServerContext(client, tokenizer, settings, self._threads, self._compiling)
        for name in settings.served_model_names:
            self._served[name] = context
        return context

    def withdraw(self, name: str) -> None:
        """No request finds the model any more; those that have found it go on."""
        self._served.pop(name, None)

    def note(self, states: Sequence[ModelState]) -> None:
        """How each model fares, in the order in which they are listed."""
        self._states = {state.name: state for state in states}

    # --- what requests ask

    @property
    def first(self) -> ServerContext:
        return self._served[self._first_names[0]]

    @property
    def settings(self) -> ServerSettings:
        """The first model's, which also hold what concerns no model, such as the limit of bodies."""
        return self.first.settings

    @property
    def names(self) -> list[str]:
        added = [name for name, state in self._states.items() if state.phase is not ModelPhase.UNLOADING]
        return list(dict.fromkeys([*self._first_names, *added]))

    def get(self, name: str | None) -> ServerContext:
        """The model of a request; None is the first. Raises ModelUnknown or ModelNotReady."""
        if name is None:
            return self.first
        context = self._served.get(name)
        if context is not None:
            return context
        state = self._states.get(name)
        if state is None or state.phase is ModelPhase.UNLOADING:
            raise ModelUnknown(name, self.names)
        raise ModelNotReady(state)

    def state(self, name: str) -> ModelState:
        """How a model of `names` fares. What the supervisor calls ready may not be so in this process yet."""
        state = self._states.get(self._first_names[0] if name in self._first_names else name)
        if name in self._served:
            return state or ModelState(name, ModelPhase.READY)
        if state is None or state.phase is ModelPhase.READY:
            return ModelState(name, ModelPhase.LOADING)
        return state

    def root(self, name: str) -> str:
        """Where the weights came from."""
        if name in self._served:
            return self._served[name].settings.model_root or name
        state = self._states.get(name)
        return name if state is None else state.root or name

    def created(self, name: str) -> int:
        """When it was loaded (Unix time); of one that is not served yet, when the first one was."""
        return (self._served.get(name) or self.first).settings.created

    def max_model_len(self, name: str) -> int | None:
        """None until its engine has said it."""
        return self._served[name].client.info.max_model_len if name in self._served else None

    def close(self) -> None:
        for threads in (self._threads, self._compiling):
            threads.shutdown(wait=False, cancel_futures=True)
