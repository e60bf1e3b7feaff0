"""thranite: an inference runtime for large language models."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "StructuredOutputsParams", "__version__"]

if TYPE_CHECKING:
    from thranite.llm import LLM
    from thranite.sampling_params import SamplingParams, StructuredOutputsParams


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that light commands never pay for torch."""
    if name == "LLM":
        from thranite.llm import LLM

        return LLM
    if name in ("SamplingParams", "StructuredOutputsParams"):
        from thranite import sampling_params

        return getattr(sampling_params, name)
    raise AttributeError(f"module 'thranite' has no attribute {name!r}")
