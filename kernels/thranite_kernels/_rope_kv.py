# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `rope_kv`: one program per block of tokens and block of heads of the fused projection."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["tokens", "eps"], do_not_specialize_on_alignment=["slot_ptr", "position_ptr"])
def rope_kv_kernel(
    qkv_ptr,
    stride_x,  # input [T, (H + 2 KVH) * D]
    q_ptr,
    stride_q,  # output [T, H, D], heads contiguous
    kv_ptr,
    stride_page,  # cache [pages, 2, KVH, BLOCK_SIZE, D], contiguous within a page
    slot_ptr,  # int64 [T], page * BLOCK_SIZE + offset; negative: not stored
    position_ptr,  # [T]
    table_ptr,
    stride_table,  # cos and sin, fp32 [max_pos, ROTARY]: cos in the first half, sin in the second
    q_weight_ptr,  # [D] or None
    k_weight_ptr,  # [D] or None
    tokens,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
    ONE_PLUS: tl.constexpr,
    ROPE: tl.constexpr,
    PDL: tl.constexpr,
):
    """q and k: optional RMSNorm over the head, then (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin); v: a copy."""
    q_blocks: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    kv_blocks: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    block = tl.program_id(1)
    live = t < tokens
    x_row = qkv_ptr + t.to(tl.int64) * stride_x
    if PDL:
        gdc_launch_dependents()
    # Read before the wait: kernels without PDL alone write slots and positions, and have ended when any later kernel
    # starts (docs/kernels.md, "Early starts"). Past L1, which may hold an earlier step's lines.
    slot = tl.load(slot_ptr + t, mask=live, other=-1, cache_modifier=".cg")
    page_row = kv_ptr + (slot // BLOCK_SIZE) * stride_page + (slot % BLOCK_SIZE) * HEAD_DIM
    if block >= q_blocks + kv_blocks:
        # values: [BLOCK_T, BLOCK_H, BLOCK_D] moved as they are
        v_head = (block - q_blocks - kv_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
        d = tl.arange(0, BLOCK_D)
        if PDL:
            gdc_wait()
        moved = (live & (slot >= 0))[:, None, None] & (v_head < KV_HEADS)[None, :, None] & (d < HEAD_DIM)[None, None, :]
        v_from = ((HEADS + KV_HEADS + v_head) * HEAD_DIM)[None, :, None] + d[None, None, :]
        v = tl.load(x_row[:, None, None] + v_from, mask=moved, other=0.0)
        v_to = ((KV_HEADS + v_head) * (BLOCK_SIZE * HEAD_DIM))[None, :, None] + d[None, None, :]
        tl.store(page_row[:, None, None] + v_to, v.to(kv_ptr.dtype.element_ty), mask=moved)
    else:
        is_q = block < q_blocks
        head = tl.where(is_q, block, block - q_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
        inside = live[:, None, None] & (head < tl.where(is_q, HEADS, KV_HEADS))[None, :, None]
        base = (tl.where(is_q, head, HEADS + head) * HEAD_DIM)[None, :, None]
        half: tl.constexpr = ROTARY // 2
        i = tl.arange(0, BLOCK_HALF)
        i_live = i < half
        pair = inside & i_live[None, None, :]
        if ROPE:
            position = tl.load(position_ptr + t, mask=live, other=0, cache_modifier=".cg").to(tl.int64)
            angle = table_ptr + position[:, None] * stride_table + i[None, :]
            angle_live = live[:, None] & i_live[None, :]
            cos = tl.load(angle, mask=angle_live, other=1.0)[:, None, :]
            sin = tl.load(angle + half, mask=angle_live, other=0.0)[:, None, :]
        if NORM:
            bias: tl.constexpr = 1.0 if ONE_PLUS else 0.0
            w_ptr = tl.where(is_q, q_weight_ptr, k_weight_ptr)
            w1 = tl.load(w_ptr + i, mask=i_live, other=0.0).to(tl.float32) + bias
            w2 = tl.load(w_ptr + half + i, mask=i_live, other=0.0).to(tl.float32) + bias
        if PDL:
            gdc_wait()
        source = x_row[:, None, None] + base
        x1 = tl.load(source + i[None, None, :], mask=pair, other=0.0).to(tl.float32)
        x2 = tl.load(source + half + i[None, None, :], mask=pair, other=0.0).to(tl.float32)
        if ROTARY < HEAD_DIM:
            j = ROTARY + tl.arange(0, BLOCK_REST)
            j_live = j < HEAD_DIM
            tail = inside & j_live[None, None, :]
            x3 = tl.load(source + j[None, None, :], mask=tail, other=0.0).to(tl.float32)
        if NORM:
            square = tl.sum(x1 * x1, axis=2) + tl.sum(x2 * x2, axis=2)
            if ROTARY < HEAD_DIM:
                square += tl.sum(x3 * x3, axis=2)
            scale = tl.rsqrt(square / HEAD_DIM + eps)[:, :, None]
            x1 = x1 * scale * w1[None, None, :]
            x2 = x2 * scale * w2[None, None, :]
            if ROTARY < HEAD_DIM:
                w3 = tl.load(w_ptr + j, mask=j_live, other=0.0).to(tl.float32) + bias
                x3 = x3 * scale * w3[None, None, :]
        if ROPE:
            y1 = x1 * cos - x2 * sin
            y2 = x2 * cos + x1 * sin
        else:
            y1 = x1
            y2 = x2
        if is_q:
            q_to = q_ptr + (t.to(tl.int64) * stride_q)[:, None, None] + (head * HEAD_DIM)[None, :, None]
            tl.store(q_to + i[None, None, :], y1.to(q_ptr.dtype.element_ty), mask=pair)
            tl.store(q_to + half + i[None, None, :], y2.to(q_ptr.dtype.element_ty), mask=pair)
            if ROTARY < HEAD_DIM:
                tl.store(q_to + j[None, None, :], x3.to(q_ptr.dtype.element_ty), mask=tail)
        else:
            stored = (slot >= 0)[:, None, None]
            k_to = page_row[:, None, None] + (head * (BLOCK_SIZE * HEAD_DIM))[None, :, None]
            tl.store(k_to + i[None, None, :], y1.to(kv_ptr.dtype.element_ty), mask=pair & stored)
            tl.store(k_to + half + i[None, None, :], y2.to(kv_ptr.dtype.element_ty), mask=pair & stored)
            if ROTARY < HEAD_DIM:
                tl.store(k_to + j[None, None, :], x3.to(kv_ptr.dtype.element_ty), mask=tail & stored)
