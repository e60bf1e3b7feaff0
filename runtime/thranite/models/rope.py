"""Rotary frequencies of every supported scaling, as plain floats, fixed for one engine's maximum length.

Arithmetic is rounded to float32 after every operation, as the models were trained with it: an inverse frequency that is
off by one unit in the last place turns a far position by a visible angle.

Sources: linear (kaiokendev), dynamic NTK (bloc97, emozilla), YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753), and
Llama 3.1's wavelength bands.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thranite.errors import UnsupportedModel
from thranite.models.spec import RopeSpec

# Keys that say nothing about frequencies beyond what `rope_spec` reads.
KNOWN_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
             "finetuned", "original_max_position_embeddings"},
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor", "original_max_position_embeddings"},
}  # fmt: skip
COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True, slots=True)
class RopeContext:
    """What a scaling may depend on. `length`: the engine's longest sequence."""

    parameters: Mapping[str, Any]
    theta: float
    dim: int
    max_position_embeddings: int
    length: int

    def number(self, key: str, default: float | None = None) -> float:
        value = self.parameters.get(key)
        return positive(key, default if value is None else value)

    @property
    def original_length(self) -> int:
        return int(self.number("original_max_position_embeddings", self.max_position_embeddings))

    def factors(self, key: str) -> list[float]:
        values = self.parameters.get(key)
        if not isinstance(values, list | tuple) or len(values) != self.dim // 2:
            raise UnsupportedModel(f"config.json: rope parameter {key} must list {self.dim // 2} numbers")
        return [f32(positive(key, value)) for value in values]


def positive(key: str, value: Any) -> float:
    """Every number of a rope is finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise UnsupportedModel(f"config.json: rope parameter {key} = {value!r}; a positive number is needed")
    return float(value)


def f32(value: float) -> float:
    """Round to the nearest float32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def rope_type(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str):
        raise UnsupportedModel(f"config.json: rope type {kind!r} is not one of {', '.join(SCALINGS)}")
    return kind


def rope_spec(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, max_model_len: int | None
) -> RopeSpec:
    """Frequencies for `parameters` (v5 spelling: rope_type, rope_theta, factor, …)."""
    kind = rope_type(parameters)
    if kind not in SCALINGS:
        raise UnsupportedModel(f"config.json: rope type {kind!r} is not one of {', '.join(SCALINGS)}")
    unknown = {k for k, v in parameters.items() if v is not None} - KNOWN_KEYS[kind] - COMMON_KEYS
    if unknown:
        raise UnsupportedModel(f"config.json: unknown parameters of {kind} rope: {', '.join(sorted(unknown))}")
    partial = parameters.get("partial_rotary_factor")
    dim = int(head_dim * (1.0 if partial is None else positive("partial_rotary_factor", partial)))
    if dim < 2 or dim % 2 or dim > head_dim:
        raise UnsupportedModel(
            f"config.json: {dim} rotated dimensions a head; an even number up to {head_dim} is needed"
        )
    theta = positive("rope_theta", parameters.get("rope_theta", 10_000.0))
    context = RopeContext(parameters, theta, dim, max_position_embeddings, max_model_len or max_position_embeddings)
    try:
        inv_freq, attention_factor = SCALINGS[kind](context)
    except (ArithmeticError, ValueError) as error:  # each number is one, and together they are none
        raise UnsupportedModel(f"config.json: {kind} rope has no frequencies by {dict(parameters)}: {error}") from error
    return RopeSpec(dim, tuple(inv_freq), attention_factor)


def wavelengths(theta: float, dim: int) -> list[float]:
    """theta ** (2 i / dim): positions per radian of pair i."""
    return [f32(f32(theta) ** f32(2 * i / dim)) for i in range(dim // 2)]


def default(context: RopeContext) -> tuple[list[float], float]:
    return [f32(1.0 / w) for w in wavelengths(context.theta, context.dim)], 1.0


def linear(context: RopeContext) -> tuple[list[float], float]:
    factor = context.number("factor")
    return [f32(f / factor) for f in default(context)[0]], 1.0


def dynamic(context: RopeContext) -> tuple[list[float], float]:
    """NTK-aware: the base grows with the engine's length beyond the trained one."""
    factor, trained = context.number("factor"), context.max_position_embeddings
    stretch = factor * max(context.length, trained) / trained - (factor - 1)
    theta = context.theta * stretch ** (context.dim / (context.dim - 2))
    return [f32(1.0 / w) for w in wavelengths(theta, context.dim)], 1.0


def llama3(context: RopeContext) -> tuple[list[float], float]:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended."""
    factor, trained = context.number("factor"), context.original_length
    low, high = context.number("low_freq_factor"), context.number("high_freq_factor")

    def scaled(frequency: float) -> float:
        wavelength = f32(f32(2 * math.pi) / frequency)
        if wavelength < trained / high:
            return frequency
        if wavelength > trained / low:
            return f32(frequency / factor)
        smooth = f32(f32(f32(trained / wavelength) - low) / (high - low))
        return f32(f32(f32(f32(1 - smooth) * frequency) / factor) + f32(smooth * frequency))

    return [scaled(f) for f in default(context)[0]], 1.0


def yarn(context: RopeContext) -> tuple[list[float], float]:
    """Interpolate slow pairs, keep fast ones, with a linear ramp between."""
    trained = context.original_length
    factor = context.number("factor", context.max_position_embeddings / trained)
    low = _yarn_pair(context, context.number("beta_fast", 32))
    high = _yarn_pair(context, context.number("beta_slow", 1))
    if context.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, context.dim - 1)
    width = 0.001 if low == high else high - low
    result = []
    for pair, wavelength in enumerate(wavelengths(context.theta, context.dim)):
        keep = f32(1 - min(max(f32(f32(pair - low) / width), 0.0), 1.0))
        interpolated, extrapolated = f32(1.0 / f32(factor * wavelength)), f32(1.0 / wavelength)
        result.append(f32(f32(interpolated * f32(1 - keep)) + f32(extrapolated * keep)))
    return result, _yarn_attention_factor(context, factor)


def _yarn_pair(context: RopeContext, rotations: float) -> float:
    """The pair (fractional) that turns `rotations` times over the trained length."""
    ratio = context.original_length / (rotations * 2 * math.pi)
    return context.dim * math.log(ratio) / (2 * math.log(context.theta))


def _yarn_attention_factor(context: RopeContext, factor: float) -> float:
    if context.parameters.get("attention_factor") is not None:
        return context.number("attention_factor")

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if context.parameters.get("mscale") and context.parameters.get("mscale_all_dim"):
        return magnitude(context.number("mscale")) / magnitude(context.number("mscale_all_dim"))
    return magnitude(1.0)


def longrope(context: RopeContext) -> tuple[list[float], float]:
    """One searched factor a pair; the long set serves engines that go beyond the trained length."""
    trained = context.original_length
    stretches = context.factors("long_factor" if context.length > trained else "short_factor")
    inv_freq = [f32(1.0 / f32(s * w)) for s, w in zip(stretches, wavelengths(context.theta, context.dim), strict=True)]
    context.factors("short_factor")
    if context.parameters.get("attention_factor") is not None:
        return inv_freq, context.number("attention_factor")
    factor = context.number("factor", context.max_position_embeddings / trained)
    return inv_freq, 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))


SCALINGS: dict[str, Callable[[RopeContext], tuple[list[float], float]]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}
