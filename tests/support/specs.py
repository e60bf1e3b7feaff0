"""Model specs by hand, for planning tests: real shapes without any config file."""

from __future__ import annotations

from thranite.models.spec import Activation, LayerSpec, ModelSpec, RopeSpec


def layer_spec(
    *, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, intermediate: int = 128, window: int | None = None
) -> LayerSpec:
    return LayerSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=0,
        window=window,
        intermediate_size=intermediate,
        scale=head_dim**-0.5,
        softcap=None,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


def model_spec(
    *layers: LayerSpec,
    hidden: int = 64,
    vocab: int = 512,
    positions: int = 4096,
    dtype: str = "bfloat16",
    tied: bool = False,
) -> ModelSpec:
    layers = layers or (layer_spec(), layer_spec())
    return ModelSpec(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden_size=hidden,
        layers=layers,
        ropes=(RopeSpec(layers[0].head_dim, tuple(1.0 for _ in range(layers[0].head_dim // 2))),),
        activation=Activation.SILU,
        norm_eps=1e-5,
        unit_offset_norm=False,
        sandwich_norms=False,
        embedding_scale=1.0,
        final_softcap=None,
        tied_embeddings=tied,
        max_position_embeddings=positions,
        dtype=dtype,
        eos_token_ids=(2,),
        bos_token_id=1,
    )


def llama_8b() -> ModelSpec:
    """Llama-3.1-8B's shapes."""
    layer = layer_spec(heads=32, kv_heads=8, head_dim=128, intermediate=14336)
    return model_spec(*[layer] * 32, hidden=4096, vocab=128256, positions=131072)
