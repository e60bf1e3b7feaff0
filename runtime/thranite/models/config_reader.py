"""Typed reading of a parsed config.json: defaults where a key is absent, errors that name the key."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from thranite.errors import UnsupportedModel
from thranite.models.spec import DTYPE_BYTES, Activation

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu": Activation.GELU,
}


class ConfigReader:
    """A config.json with a family's defaults beneath it. A key that is present and null reads as None."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], architecture: str) -> None:
        self._values: dict[str, Any] = {**defaults, **config}
        self.architecture = architecture

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.unsupported(key, "a positive integer is needed")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.unsupported(key, "a number is needed")
        return float(value)

    def positive(self, key: str) -> float:
        value = self.number(key)
        if value <= 0:
            raise self.unsupported(key, "a positive number is needed")
        return value

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.unsupported(key, "true or false is needed")
        return bool(value)

    def section(self, key: str) -> Mapping[str, Any]:
        """{} where there is none."""
        value = self.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.unsupported(key, "a section is needed")
        return value

    def activation(self, key: str) -> Activation:
        name = self.get(key)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.unsupported(key, f"known activations: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def refuse(self, key: str, reason: str) -> None:
        """Refuse an option that is switched on; null, false and absent pass."""
        if self.get(key):
            raise self.unsupported(key, reason)

    def unsupported(self, key: str, reason: str, value: Any = None) -> UnsupportedModel:
        """`value`: where the key stands in a section."""
        found = self.get(key) if value is None else value
        return UnsupportedModel(f"config.json of {self.architecture}: {key} = {found!r} ({reason})")


def checkpoint_dtype(configs: Sequence[Mapping[str, Any]], wish: str) -> str:
    """`wish` unless it is auto; else the first of `dtype` and `torch_dtype` that a config names; else float32."""
    names = [config.get(key) for config in configs for key in ("dtype", "torch_dtype")]
    name = wish if wish != "auto" else next((n for n in names if n not in (None, "auto")), "float32")
    name = str(name).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise UnsupportedModel(f"config.json: dtype {name!r} is not one of {', '.join(DTYPE_BYTES)}")
    return name


def merged_token_ids(*values: Any) -> tuple[int, ...]:
    """EOS ids of several sources (an id, a list of ids, or null each), in order and without repeats."""
    merged: dict[int, None] = {}
    for value in values:
        ids = [i for i in (value if isinstance(value, list | tuple) else [value]) if i is not None]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise UnsupportedModel(
                f"config.json or generation_config.json: eos_token_id = {value!r}; token ids are needed"
            )
        merged.update(dict.fromkeys(ids))
    return tuple(merged)
