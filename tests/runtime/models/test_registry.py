"""config.json of well-known models, written out by hand, and everything that must be refused by name."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from thranite.errors import UnsupportedModel
from thranite.models.registry import KNOWN_ARCHITECTURES, load_spec
from thranite.models.spec import Activation, ModelSpec

LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}  # fmt: skip
MISTRAL_7B_V3 = MISTRAL_7B | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
QWEN2_5_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768,
    "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA_2_2B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
    "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32", "vocab_size": 256000,
}  # fmt: skip
GEMMA_3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None, "bos_token_id": 2,
    "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "vocab_size": 262144,
}  # fmt: skip
GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
}  # fmt: skip
PHI_3_MINI_128K: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 32000,
    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.05] * 48, "type": "longrope"},
    "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}  # fmt: skip


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.window for layer in spec.layers]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_3_1_8B, 8_030_261_248),
        (MISTRAL_7B, 7_241_732_096),
        (MISTRAL_7B_V3, 7_248_023_552),
        (QWEN2_5_7B, 7_615_616_512),
        (QWEN3_0_6B, 596_049_920),
        (GEMMA_2_2B, 2_614_341_888),
        (GEMMA_3_1B, 999_885_952),
        (GEMMA_3_4B, 3_880_263_168),
        (PHI_3_MINI_128K, 3_821_079_552),
    ],
)
def test_parameter_counts(config: dict[str, Any], parameters: int) -> None:
    assert load_spec(config).num_parameters == parameters


def test_llama() -> None:
    spec = load_spec(LLAMA_3_1_8B, generation_config={"eos_token_id": [128009, 7]})
    assert spec.eos_token_ids == (128009, 7, 128001, 128008)


def test_a_family_s_end_is_that_of_models_that_name_none() -> None:
    unnamed = {key: value for key, value in LLAMA_3_1_8B.items() if key != "eos_token_id"}
    assert load_spec(unnamed).eos_token_ids == (2,)
    assert load_spec(unnamed, generation_config={"eos_token_id": 7}).eos_token_ids == (7,)
    assert load_spec({**unnamed, "eos_token_id": None}).eos_token_ids == ()


def test_ends_outside_the_vocabulary_are_left_out() -> None:
    """Nobody can draw them; banning them before a minimal length would reach past the row."""
    spec = load_spec(LLAMA_3_1_8B, generation_config={"eos_token_id": [128256, -1, 128009]})
    assert spec.eos_token_ids == (128009, 128001, 128008)
    assert (spec.dtype, spec.bos_token_id, spec.max_position_embeddings) == ("bfloat16", 128000, 131072)
    assert windows(spec) == [None] * 32
    assert spec.ropes[0].rotary_dim == 128
    assert load_spec(LLAMA_3_1_8B, dtype="float16").dtype == "float16"


def test_mistral_window_holds_only_beyond_its_length() -> None:
    assert windows(load_spec(MISTRAL_7B)) == [4096] * 32
    assert windows(load_spec(MISTRAL_7B, max_model_len=4096)) == [None] * 32
    assert windows(load_spec(MISTRAL_7B_V3)) == [None] * 32
    absent = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
    assert windows(load_spec(absent)) == [4096] * 32


def test_qwen_windows_need_their_switch() -> None:
    on = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    assert windows(load_spec(QWEN2_5_7B)) == [None] * 28
    assert windows(load_spec(QWEN2_5_7B | on)) == [None] * 20 + [4096] * 8
    types = ["sliding_attention", "full_attention"] * 14
    assert windows(load_spec(QWEN3_0_6B | on | {"layer_types": types})) == [4096, None] * 14
    assert all(layer.qkv_bias and not layer.out_bias for layer in load_spec(QWEN2_5_7B).layers)


@pytest.mark.parametrize("first", [None, -1, True, "20"])
def test_qwen_windows_need_their_first_layer(first: Any) -> None:
    on = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": first}
    with pytest.raises(UnsupportedModel, match="max_window_layers"):
        load_spec(QWEN2_5_7B | on)
    assert windows(load_spec(QWEN2_5_7B | {"max_window_layers": None})) == [None] * 28
    assert windows(load_spec(QWEN2_5_7B | on | {"max_window_layers": 0})) == [4096] * 28


def test_qwen3_normalises_heads() -> None:
    spec = load_spec(QWEN3_0_6B)
    assert all(layer.qk_norm and layer.head_dim == 128 for layer in spec.layers)
    assert spec.tied_embeddings


def test_gemma2() -> None:
    spec = load_spec(GEMMA_2_2B)
    assert windows(spec) == [4096, None] * 13
    assert (spec.final_softcap, spec.layers[0].softcap, spec.layers[0].scale) == (30.0, 50.0, 256**-0.5)
    assert spec.tied_embeddings
    assert spec.unit_offset_norm
    assert spec.sandwich_norms
    assert spec.embedding_scale == 2304**0.5
    assert spec.activation is Activation.GELU_TANH


def test_gemma3_has_two_ropes_and_a_global_layer_in_six() -> None:
    spec = load_spec(GEMMA_3_1B)
    assert windows(spec) == ([512] * 5 + [None]) * 4 + [512] * 2
    assert [layer.rope for layer in spec.layers[:6]] == [1, 1, 1, 1, 1, 0]
    assert spec.eos_token_ids == (1, 106)
    assert spec.ropes[0].inv_freq[1] < spec.ropes[1].inv_freq[1]


def test_gemma3_conditional_generation_reads_its_text_part() -> None:
    spec = load_spec(GEMMA_3_4B)
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers), spec.dtype) == (262208, 2560, 34, "bfloat16")
    assert spec.ropes[0].inv_freq[0] == 1 / 8  # linear scaling is the global layers' alone
    assert spec.ropes[1].inv_freq[0] == 1.0
    assert spec.eos_token_ids == (1, 106)
    assert spec.layers[0].qk_norm


def test_gemma3_spellings_agree() -> None:
    new = {key: value for key, value in GEMMA_3_1B.items() if not key.startswith(("rope_", "torch", "sliding_window_"))}
    new |= {
        "dtype": "bfloat16",
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
        },
    }
    assert load_spec(new) == load_spec(GEMMA_3_1B)


def test_llama_spellings_agree() -> None:
    new = {k: v for k, v in LLAMA_3_1_8B.items() if not k.startswith("rope_") and k != "torch_dtype"}
    new |= {"dtype": "bfloat16", "rope_parameters": LLAMA_3_1_8B["rope_scaling"] | {"rope_theta": 500000.0}}
    assert load_spec(new) == load_spec(LLAMA_3_1_8B)


def test_phi3_factors_follow_the_engine_length() -> None:
    long, short = load_spec(PHI_3_MINI_128K), load_spec(PHI_3_MINI_128K, max_model_len=4096)
    assert windows(long) == [None] * 32
    assert long.ropes[0].inv_freq[5] < short.ropes[0].inv_freq[5]
    assert long.ropes[0].attention_factor == short.ropes[0].attention_factor == pytest.approx(1.1902, abs=1e-4)
    assert load_spec(PHI_3_MINI_128K, max_model_len=4097).ropes == long.ropes
    su = PHI_3_MINI_128K | {"rope_scaling": PHI_3_MINI_128K["rope_scaling"] | {"type": "su"}}
    assert load_spec(su) == long


def test_partial_rotary() -> None:
    spec = load_spec(PHI_3_MINI_128K | {"rope_scaling": None, "partial_rotary_factor": 0.75})
    assert spec.ropes[0].rotary_dim == 72


def test_family_defaults_when_keys_are_absent() -> None:
    spec = load_spec({"architectures": ["Gemma3ForCausalLM"]})
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers), spec.eos_token_ids) == (262208, 2304, 26, (1,))
    assert spec.dtype == "float32"
    assert load_spec({"architectures": ["Qwen2ForCausalLM"]}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"model_type": "llama"}, "none named"),
        (LLAMA_3_1_8B | {"quantization_config": {"quant_method": "awq"}}, "quantized.*'awq'"),
        (
            GEMMA_3_4B | {"text_config": GEMMA_3_4B["text_config"] | {"quantization_config": {"quant_method": "gptq"}}},
            "quantized.*'gptq'",
        ),
        (LLAMA_3_1_8B | {"hidden_act": "relu2"}, "hidden_act = 'relu2'"),
        (LLAMA_3_1_8B | {"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope'"),
        (LLAMA_3_1_8B | {"rope_scaling": {"full_attention": {}}}, "one flat set"),
        (LLAMA_3_1_8B | {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (LLAMA_3_1_8B | {"rope_scaling": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
        (GEMMA_2_2B | {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
        (LLAMA_3_1_8B | {"torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn'"),
        (LLAMA_3_1_8B | {"num_key_value_heads": 5}, "num_key_value_heads = 5"),
        (LLAMA_3_1_8B | {"hidden_size": "4096"}, "hidden_size = '4096'"),
        (MISTRAL_7B | {"layer_types": ["full_attention", "sliding_attention"] * 16}, "layer_types"),
        (QWEN3_0_6B | {"layer_types": ["linear_attention"] * 28}, "layer_types"),
        (QWEN3_0_6B | {"layer_types": ["full_attention"]}, "num_hidden_layers is 28"),
        (GEMMA_3_1B | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_3_1B | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (PHI_3_MINI_128K | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "Phi3 knows"),
    ],
)
def test_refuses_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_spec(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA_3_1_8B | {"rope_scaling": {"rope_type": "default", "rope_theta": None}}, "rope_theta = None"),
        (LLAMA_3_1_8B | {"rope_scaling": None, "rope_theta": "1e6"}, "rope_theta = '1e6'"),
        (LLAMA_3_1_8B | {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor = 0"),
        (LLAMA_3_1_8B | {"rope_scaling": {"rope_type": ["x"]}}, r"rope type \['x'\]"),
        (LLAMA_3_1_8B | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "yarn rope has no"),
        (LLAMA_3_1_8B | {"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        (LLAMA_3_1_8B | {"eos_token_id": [1, "2"]}, r"eos_token_id = \[1, '2'\]"),
        (LLAMA_3_1_8B | {"hidden_act": ["silu"]}, r"hidden_act = \['silu'\]"),
        (LLAMA_3_1_8B | {"rms_norm_eps": math.nan}, "rms_norm_eps = nan"),
        (LLAMA_3_1_8B | {"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'"),
        (LLAMA_3_1_8B | {"architectures": [["LlamaForCausalLM"]]}, "architectures = "),
        (QWEN3_0_6B | {"layer_types": 5}, "layer_types = 5"),
        (QWEN3_0_6B | {"layer_types": [["full_attention"]] * 28}, "layer_types = "),
        (GEMMA_3_4B | {"text_config": []}, r"text_config = \[\]"),
        (GEMMA_3_1B | {"rope_scaling": ["x"]}, r"rope_scaling = \['x'\]"),
        (GEMMA_3_1B | {"rope_parameters": {"full_attention": ["x"]}}, "rope_parameters = "),
        (GEMMA_3_1B | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        (PHI_3_MINI_128K | {"partial_rotary_factor": "0.5"}, "partial_rotary_factor = '0.5'"),
        (PHI_3_MINI_128K | {"rope_scaling": {"type": "longrope", "long_factor": "1" * 48}}, "long_factor"),
    ],
)
def test_malformed_values_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_spec(config)


WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    0.5,
    10**400,
    math.nan,
    math.inf,
    "",
    "x",
    "1",
    [],
    [[]],
    ["x"],
    {},
    {"x": ["y"]},
    {"x": {}},
)
CONFIGS = (LLAMA_3_1_8B, MISTRAL_7B, QWEN3_0_6B, GEMMA_2_2B, GEMMA_3_1B, GEMMA_3_4B, PHI_3_MINI_128K)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
def test_a_malformed_value_is_refused_or_no_matter(config: dict[str, Any]) -> None:
    """Whatever stands wherever: no other error than those of the tree."""
    long = {"hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"}  # lists as long as they say
    places = [()] + [(key,) for key in ("rope_scaling", "text_config") if isinstance(config.get(key), dict)]
    for place in places:
        section = config[place[0]] if place else config
        for key in {*section, "layer_types", "rope_parameters", "rope_scaling", "partial_rotary_factor", "dtype"}:
            for wrong in WRONG:
                if wrong == 10**400 and key in long:
                    continue
                changed = section | {key: wrong}
                with suppress(UnsupportedModel):
                    load_spec(config | {place[0]: changed} if place else changed, generation_config={"eos_token_id": 1})


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        load_spec({"architectures": ["MambaForCausalLM"]})
    assert all(name in str(caught.value) for name in KNOWN_ARCHITECTURES)
    assert len(KNOWN_ARCHITECTURES) == 8


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, thranite.models.registry; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
