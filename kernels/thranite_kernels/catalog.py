"""Every kind of launch the tables name, built from meta tensors: compiled for a target without a GPU.

    python -m thranite_kernels.catalog --capability 90 [--part attention] [--quick]

prints one line a kernel (name, shape, shared bytes) and fails when one does not compile or does not fit. This list
covers the kinds: head sizes, page sizes, groups, options, dtypes. `thranite compile` compiles what one model needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import hopper_gemm
from .all_reduce import one_shot_all_reduce_launch, two_shot_all_reduce_launch
from .all_reduce_norm import two_shot_all_reduce_norm_launch
from .attention import HEAD_SIZES
from .fused_gemm import FusedScratch, NormTerms, gemm_add_launch, norm_gemm_launch
from .gated_gemm import TALL_ROWS, gated_gemm_launch
from .glu import Activation, glu_launch
from .launch import Launch
from .logprobs import Logprobs, logprobs_launches
from .packet_sum import packet_all_reduce_launch, packet_all_reduce_norm_launch
from .paged_decode import DecodePlan, paged_decode_launch
from .paged_prefill import PrefillPlan, paged_prefill_launch, plan_config
from .peer_memory import PeerMemory
from .prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs_launch
from .rms_norm import rms_norm_launch
from .rng import random_bits_launch
from .rope_kv import rope_kv_launch
from .sampler import SamplerScratch, SamplingState, sample_launches
from .shaping import RowMasks, ShapingState, shape_launches
from .skinny_gemm import GemmScratch, skinny_gemm_launch
from .stream_gemm import StreamScratch, stream_gemm_launch
from .target import FUSED_BOUNDS, OVERLAP_CAPABILITY, Target, fused_config, gemm_config, pretended

NUM_SMS = {80: 108, 89: 58, 90: 132, 100: 148}
"""Multiprocessors of a common device of each capability: A100, L4, H100, B200."""

PARTS = ("elementwise", "sampler", "gemm", "decode", "prefill")


@dataclass(frozen=True, slots=True)
class Entry:
    """One launch of the catalogue and what it stands for."""

    name: str
    launch: Launch


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _ints(*shape: int) -> torch.Tensor:
    return _meta(*shape, dtype=torch.int32)


def elementwise_entries() -> Iterator[Entry]:
    """rms_norm, glu, rope_kv, the ranks' sums, prepare_inputs and the generator."""
    for width in (1024, 4096):
        x = _meta(8, width)
        for residual, one_plus in ((None, False), (x, False), (x, True)):
            launch = rms_norm_launch(x, x[0], 1e-6, residual=residual, one_plus=one_plus, out=x)
            yield Entry(f"rms_norm {width} {'residual' if residual is not None else ''} {one_plus=}", launch)
        parts = _meta(2, 8, width, dtype=torch.float32)
        yield Entry(f"rms_norm {width} of parts", rms_norm_launch(parts, x[0], 1e-6, residual=x, one_plus=False, out=x))
    kinds: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
    for kind in kinds:
        yield Entry(f"glu {kind}", glu_launch(_meta(8, 6144), kind, out=_meta(8, 3072)))
    shapes = ((32, 8, 128, 128, False), (16, 8, 128, 128, True), (9, 3, 64, 32, True))
    for tokens in (8, 4096):
        for heads, kv_heads, dim, rotary, norm in shapes:
            launch = rope_kv_launch(
                _meta(tokens, (heads + 2 * kv_heads) * dim),
                _meta(64, 2, kv_heads, 64, dim),
                _meta(tokens, dtype=torch.int64),
                _ints(tokens),
                _meta(4096, rotary, dtype=torch.float32),
                heads=heads,
                q_weight=_meta(dim) if norm else None,
                k_weight=_meta(dim) if norm else None,
                eps=1e-6,
                one_plus=heads == 9,
                out=_meta(tokens, heads, dim),
            )
            yield Entry(f"rope_kv T{tokens} H{heads}/{kv_heads} D{dim} rotary {rotary} {norm=}", launch)
    yield from peer_entries()
    n = _ints(64)
    state, plan = SlotState(n, n, _ints(64, 128)), RowPlan(n, n, n, n, n)
    for advance in (False, True):
        step = StepInputs.allocate(64, 64, "meta")
        yield Entry(
            f"prepare_inputs {advance=}", prepare_inputs_launch(state, plan, step, block_size=64, advance=advance)
        )
    yield Entry("random_bits", random_bits_launch(_meta(4, dtype=torch.int64), n, n, _ints(4, 99)))


def peer_entries() -> Iterator[Entry]:
    """The ranks' sums, over few and many ranks."""
    for rank, size in ((0, 2), (1, 2), (7, 8)):
        peers = PeerMemory.of(rank, [0] * size, 0, "meta")
        for dtype in (torch.bfloat16, torch.float32):
            x = _meta(64, 4096, dtype=dtype)
            name = f"{str(dtype).removeprefix('torch.')} on rank {rank} of {size}"
            yield Entry(f"one_shot_all_reduce {name}", one_shot_all_reduce_launch(x, peers, out=x))
            yield Entry(f"two_shot_all_reduce {name}", two_shot_all_reduce_launch(x, peers, out=x))
            yield Entry(f"packet_all_reduce {name}", packet_all_reduce_launch(x, peers, out=x))
            launch = packet_all_reduce_norm_launch(x, x, x[0], 1e-6, peers, out=x)
            yield Entry(f"packet_all_reduce_norm {name}", launch)
            launch = two_shot_all_reduce_norm_launch(x, x, x[0], 1e-6, peers, out=x)
            yield Entry(f"two_shot_all_reduce_norm {name}", launch)


def sampler_entries() -> Iterator[Entry]:
    """Shaping, the sampler with and without filters and counts, log-probabilities."""
    rows, vocab = 64, 151936
    logits, n = _meta(rows, vocab), _ints(rows)
    scratch, state = SamplerScratch.allocate(rows, vocab, "meta"), SamplingState.allocate(rows, "meta")
    shaping, masks = ShapingState.allocate(rows, vocab, "meta", rows=2), RowMasks.none(rows, vocab, "meta")
    shaped = _meta(rows, vocab, dtype=torch.float32)
    for launch in shape_launches(logits, shaping, n, n, masks, bans=True, out=shaped):
        yield Entry(launch.kernel.__name__, launch)
    for x, filters, counts in (
        (logits, False, None), (logits, True, None), (shaped, False, shaping.counts), (shaped, True, shaping.counts)
    ):  # fmt: skip
        for launch in sample_launches(
            x, state, n, n, scratch, filters=filters, last_token=n, counts=counts, out=n
        ):  # fmt: skip
            yield Entry(f"{launch.kernel.__name__} {x.dtype} {filters=}", launch)
    for top in (0, 5, 20):
        width = max(1 << (top - 1).bit_length(), 1) if top else 1
        floats = _meta(rows, dtype=torch.float32)
        out = Logprobs(floats, n, _meta(rows, width, dtype=torch.float32), _ints(rows, width))
        for launch in logprobs_launches(logits, n, top, wanted=n, out=out):
            yield Entry(f"{launch.kernel.__name__} {top=}", launch)


def gemm_entries(target: Target) -> Iterator[Entry]:
    """The products for few rows at linears of two models; fused products."""
    yield from fused_entries()
    for width, depth in ((6144, 4096), (4096, 14336), (4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)):
        scratch = GemmScratch.allocate(width, "meta")
        for rows in (1, 8):
            config = gemm_config(target, rows, width, depth)
            launch = skinny_gemm_launch(
                _meta(rows, depth), _meta(width, depth), scratch, bias=None, out=_meta(rows, width), config=config
            )
            yield Entry(f"skinny_gemm M{rows} N{width} K{depth} {config}", launch)
    if target.capability < OVERLAP_CAPABILITY:
        return  # cuBLAS takes large weights there
    for width, depth in ((28672, 4096), (4096, 14336)):
        partial = StreamScratch.allocate(width, "meta", target=target)
        launch = stream_gemm_launch(
            _meta(8, depth), _meta(width, depth), partial, bias=None, out=_meta(8, width), target=target
        )
        yield Entry(f"stream_gemm N{width} K{depth}", launch)
    if target.capability == hopper_gemm.CAPABILITY:
        yield from hopper_entries(target)


def hopper_entries(target: Target) -> Iterator[Entry]:
    """A layer of llama-8b: plain, in parts, and gated; for many rows gated, and the smallest there is."""
    kinds = ((6144, 4096, False, False), (4096, 14336, True, False), (14336, 4096, False, True))
    for rows in hopper_gemm.ROW_BLOCKS:
        for width, depth, parts, gated in kinds:
            tiles = hopper_gemm.hopper_tiles(rows, width, depth, target, parts=parts, gated=gated)
            assert tiles is not None
            x, weight = _meta(rows, depth), _meta(width * (2 if gated else 1), depth)
            out = _meta(2, rows, width, dtype=torch.float32) if parts else _meta(rows, width)
            launch = hopper_gemm.hopper_gemm_launch(x, weight, tiles, out=out)
            yield Entry(f"hopper_gemm M{rows} N{width} K{depth} {tiles}", launch)
    for rows, width, depth in ((1000, 14336, 4096), (65, 384, 256)):
        launch = gated_gemm_launch(_meta(rows, depth), _meta(2 * width, depth), out=_meta(rows, width))
        yield Entry(f"gated_gemm N{width} K{depth}", launch)
    x, weight = _meta(TALL_ROWS, 4096), _meta(28672, 4096)
    yield Entry("tall gated_gemm N14336", gated_gemm_launch(x, weight, out=_meta(TALL_ROWS, 14336)))


def fused_entries() -> Iterator[Entry]:
    """A layer of Qwen3-0.6B for each number of rows of the table; one of odd sizes with all that is optional."""
    kinds: tuple[Activation | None, ...] = (None, "silu")
    for rows in FUSED_BOUNDS:
        yield from fused_layer(rows, 1024, 2048, 4096, kinds)
    yield from fused_layer(64, 576, 576, 968, ("gelu", "gelu_tanh"), bias=True, norm=torch.float32)


def fused_layer(
    rows: int,
    hidden: int,
    depth: int,
    width: int,
    kinds: tuple[Activation | None, ...],
    *,
    bias: bool = False,
    norm: torch.dtype = torch.bfloat16,
) -> Iterator[Entry]:
    """A product of `depth` columns into the stream, and after the norm one of `width` rows for each activation."""
    h, terms = _meta(rows, hidden), NormTerms.allocate(_meta(rows, hidden), fused_config("add", rows))
    added = gemm_add_launch(
        _meta(rows, depth), _meta(hidden, depth), h, _meta(hidden, dtype=norm),
        FusedScratch.allocate(hidden, "meta"), bias=_meta(hidden) if bias else None, out=terms,
    )  # fmt: skip
    yield Entry(f"gemm_add M{rows} N{hidden} K{depth} {bias=}", added)
    for kind in kinds:
        weight = _meta(width if kind is None else 2 * width, hidden)
        launch = norm_gemm_launch(
            terms, 1e-6, weight, bias=weight[:, 0].contiguous() if bias else None, activation=kind,
            out=_meta(rows, width),
        )  # fmt: skip
        yield Entry(f"norm_gemm M{rows} N{width} K{hidden} {kind} {bias=}", launch)


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """One combination of shape and options."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 64
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    max_q: int = 1
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        """The case in a line."""
        options = [
            f"window {self.window}" if self.window else "",
            f"softcap {self.softcap}" if self.softcap else "",
            "sinks" if self.sinks else "",
            f"queries {self.max_q}" if self.max_q > 1 else "",
            "fp32" if self.dtype == torch.float32 else "",
        ]
        text = " ".join(o for o in options if o)
        return f"H{self.heads}/{self.kv_heads} D{self.head_dim} page {self.block_size} {text}".strip()


def attention_cases(quick: bool) -> list[AttentionCase]:
    """Each option once, each head size once, each page size once; `quick` leaves out what differs least."""
    cases = [
        AttentionCase(32, 8, 128),
        AttentionCase(16, 8, 128, window=4096),
        AttentionCase(8, 4, 256, 16, window=4096, softcap=50.0),
        AttentionCase(64, 8, 64, sinks=True, window=128),
        AttentionCase(32, 8, 128, 16, max_q=8),
        AttentionCase(32, 8, 128, 32),
        AttentionCase(32, 8, 64),
        AttentionCase(9, 3, 64, 16, dtype=torch.float32),
    ]
    if quick:
        return cases
    cases += [AttentionCase(8, 8, dim, 16) for dim in HEAD_SIZES if dim not in (64, 128, 256)]
    cases += [AttentionCase(32, 8, 128, 128)]
    cases += [AttentionCase(heads, 1, 128, max_q=q) for heads, q in ((1, 1), (7, 1), (16, 1), (16, 8))]
    return cases


def attention_entries(target: Target, part: str, quick: bool = False) -> Iterator[Entry]:
    """Plan and attention kernels of one part, "decode" or "prefill"."""
    for case in attention_cases(quick):
        q = _meta(64, case.heads, case.head_dim, dtype=case.dtype)
        kv = _meta(64, 2, case.kv_heads, case.block_size, case.head_dim, dtype=case.dtype)
        table, n, cu = _ints(64, 128), _ints(8), _ints(9)
        sinks = _meta(case.heads, dtype=torch.float32) if case.sinks else None
        shape = (case.heads, case.kv_heads, case.head_dim)
        if part == "decode":
            decode = DecodePlan.allocate(
                8, *shape, max_q=case.max_q, window=case.window, itemsize=q.itemsize, device="meta", target=target
            )
            yield Entry(f"decode plan {case.name}", decode.plan_launch(n, n, cu if case.max_q > 1 else None))
            launch = paged_decode_launch(q, kv, table, decode, scale=None, softcap=case.softcap, sinks=sinks, out=q)
        elif case.max_q > 1:
            continue
        else:
            config = plan_config(kv, case.heads, q.dtype, window=case.window, softcap=case.softcap, sinks=case.sinks)
            prefill = PrefillPlan.allocate(8, 64, case.heads, case.kv_heads, config=config, device="meta")
            yield Entry(f"prefill plan {case.name}", prefill.plan_launch(n, n, cu))
            launch = paged_prefill_launch(
                q,
                kv,
                table,
                prefill,
                scale=None,
                window=case.window,
                softcap=case.softcap,
                sinks=sinks,
                out=q,
                descriptor=None,
            )
        yield Entry(f"{part} {case.name}", launch)


def entries(target: Target, parts: tuple[str, ...] = PARTS, quick: bool = False) -> Iterator[Entry]:
    """The catalogue for one device, where that is the pretended one."""
    for part in parts:
        if part == "elementwise":
            yield from elementwise_entries()
        elif part == "sampler":
            yield from sampler_entries()
        elif part == "gemm":
            yield from gemm_entries(target)
        else:
            yield from attention_entries(target, part, quick)


def main(argv: list[str] | None = None) -> int:
    """Compile the catalogue; the exit code is 1 if an entry does not fit, and a compiler error ends the run."""
    parser = argparse.ArgumentParser(description="Compile every kind of kernel for one target; needs no GPU.")
    parser.add_argument("--capability", type=int, default=90, help="80, 89, 90 or 100")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part (may be given again)")
    parser.add_argument("--quick", action="store_true", help="fewer attention shapes")
    options = parser.parse_args(argv)
    target = Target(options.capability, NUM_SMS.get(options.capability, 64))
    failed = 0
    with pretended(target):
        for entry in entries(target, tuple(options.part or PARTS), options.quick):
            shared = entry.launch.compile(options.capability).metadata.shared
            fits = shared <= target.shared_limit
            failed += not fits
            print(f"sm_{options.capability} {entry.name}: {shared} B{'' if fits else ' TOO LARGE'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
