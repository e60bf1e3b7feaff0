"""The least time a workload can take on the reference GPU (H200), and what vLLM takes there.

A floor is memory traffic and arithmetic one after another at the speeds measured on that GPU: all weights but the input
embedding once a decode step, every key and value of the context once an output token, two FLOPs a weight of the layers
and four a visible key, head and dimension for a prompt token. Activations, launches and the host count nothing.
"""

from __future__ import annotations

from thranite.bench.workloads import Workload
from thranite.models.spec import DTYPE_BYTES, LayerSpec, ModelSpec

REFERENCE_GPU = "H200"
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 780e12

# vLLM 0.26.0 on the reference GPU with random weights: (GPUs, model, workload) → figure in the workload's metric.
VLLM: dict[tuple[int, str, str], float] = {
    (1, "llama-8b", "mixed"): 9662,
    (1, "llama-8b", "mixed1k"): 11872,
    (1, "llama-8b", "prefill"): 39700,
    (1, "llama-8b", "decode1"): 4.93,
    (1, "llama-8b", "decode64"): 6.91,
    (1, "llama-8b", "long"): 30900,
    (1, "qwen3-0.6b", "mixed"): 23946,
    (1, "qwen3-0.6b", "mixed1k"): 26929,
    (1, "qwen3-0.6b", "prefill"): 273400,
    (1, "qwen3-0.6b", "decode1"): 1.69,
    (1, "qwen3-0.6b", "decode64"): 2.66,
    (2, "llama-8b", "mixed"): 15675,
    (2, "llama-8b", "prefill"): 68400,
    (2, "llama-8b", "decode1"): 3.52,
    (2, "llama-8b", "decode64"): 4.65,
}


def floor_seconds(spec: ModelSpec, workload: Workload, gpus: int = 1) -> float:
    """Seconds of the whole workload, divided evenly over the GPUs."""
    steps = workload.longest_output * step_bytes(spec) / BYTES_PER_SECOND
    contexts = sum(_context_bytes(spec, *lengths) for lengths in workload.lengths) / BYTES_PER_SECOND
    prompts = sum(_prompt_flops(spec, prompt) for prompt, _ in workload.lengths) / FLOPS_PER_SECOND
    return (steps + contexts + prompts) / gpus


def step_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that a decode step reads: all, but of an untied input embedding only some rows."""
    unread = 0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size
    return (spec.num_parameters - unread) * DTYPE_BYTES[spec.dtype]


def _context_bytes(spec: ModelSpec, prompt: int, output: int) -> int:
    """Keys and values read while decoding one request."""
    return sum(
        _visible(layer, prompt, prompt + output) * 2 * layer.num_kv_heads * layer.head_dim * DTYPE_BYTES[spec.dtype]
        for layer in spec.layers
    )


def _prompt_flops(spec: ModelSpec, prompt: int) -> int:
    return sum(
        2 * prompt * spec.layer_parameters(layer) + 4 * layer.num_heads * layer.head_dim * _visible(layer, 0, prompt)
        for layer in spec.layers
    )


def _visible(layer: LayerSpec, first: int, end: int) -> int:
    """Keys that the queries at positions first … end - 1 see, added up."""

    def upto(count: int) -> int:
        """1 + 2 + … + count, each at most the window."""
        ramp = count if layer.window is None else min(count, layer.window)
        return ramp * (ramp + 1) // 2 + (count - ramp) * ramp

    return upto(end) - upto(first)
