"""Checkpoints into the decoder: layouts and types that must load, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.paged_decoding import PagedDecoding
from tests.support.tiny_models import BASE, GEMMA3, TINY_MODELS, build, save
from thranite.errors import CheckpointError
from thranite.loader import checkpoint
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec

CPU = torch.device("cpu")
TOKENS = list(range(3, 40))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TINY_MODELS["llama-biased-tied"]
    return save(model, build(model), tmp_path_factory.mktemp("original"))


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy whose tensors a test may change."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((original / name).read_bytes())
    return tmp_path


def spec_of(directory: Path) -> ModelSpec:
    return load_spec(json.loads((directory / "config.json").read_text()))


def load(directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    return load_model(spec_of(directory), directory, dtype=dtype, device=CPU, **options)


def edit(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def logits(decoder: Decoder) -> Tensor:
    return PagedDecoding(decoder, 16, slots=1).step([(0, TOKENS)])[0]


def test_sharded_equals_single(original: Path, directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(load(directory)), logits(load(original)))


def test_small_mappings_equal_one(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits(load(original))
    monkeypatch.setattr(checkpoint, "MAPPED_BYTES", 1000)
    assert torch.equal(logits(load(original)), whole)


def test_progress_counts_every_byte(original: Path) -> None:
    calls: list[tuple[int, int]] = []
    decoder = load(original, progress=lambda done, total: calls.append((done, total)))
    total = 4 * sum(parameter.numel() for parameter in decoder.parameters())
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_converted(original: Path, dtype: torch.dtype) -> None:
    decoder = load(original, dtype)
    assert {parameter.dtype for parameter in decoder.parameters()} == {dtype}
    result = logits(decoder)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loose = 1e-4 if dtype == torch.float64 else 0.5
    torch.testing.assert_close(result.float(), logits(load(original)), rtol=0.0, atol=loose)


def test_a_tied_head_beside_the_embedding_and_rotary_buffers_are_skipped(original: Path, directory: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    edit(directory, change)
    assert torch.equal(logits(load(directory)), logits(load(original)))


def test_a_tied_head_alone_is_the_embedding(original: Path, directory: Path) -> None:
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert torch.equal(logits(load(directory)), logits(load(original)))


@pytest.mark.parametrize("head", [torch.zeros(BASE["vocab_size"], BASE["hidden_size"]), torch.zeros(3, 3)])
def test_a_tied_head_that_differs_is_refused(directory: Path, head: Tensor) -> None:
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": head}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .* differs from model\.embed_tokens\.weight"):
        load(directory)


def conditional(directory: Path) -> tuple[Any, Path]:
    """A tiny Gemma3ForConditionalGeneration, vision tower included, saved as transformers does."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}  # fmt: skip
    text = {**GEMMA3, "model_type": "gemma3_text"}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=198,
                          boi_token_index=197, eoi_token_index=196)  # fmt: skip
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    return model, directory


def old_layout(name: str) -> str:
    """As transformers before 4.52 named it."""
    for new, old in (("model.language_model.", "language_model.model."), ("model.", "")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def new_layout(name: str) -> str:
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return name if name.startswith(("model.", "lm_head")) else "model." + name


@pytest.mark.parametrize("layout", [old_layout, new_layout])
def test_text_part_of_gemma3_conditional_generation(tmp_path: Path, layout: Callable[[str], str]) -> None:
    reference, directory = conditional(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    renamed = {layout(name): tensor for name, tensor in tensors.items()}
    assert any(name.startswith(("vision_tower.", "model.vision_tower.")) for name in renamed)
    save_file(renamed, directory / "model.safetensors")
    with torch.inference_mode():
        expected = reference(input_ids=torch.tensor([TOKENS])).logits[0]
    actual = logits(load(directory))
    torch.testing.assert_close(actual.log_softmax(-1), expected.log_softmax(-1), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.self_attn.k_proj.bias"),
            r"missing: model\.layers\.1\.self_attn\.k_proj\.bias",
        ),
        (lambda t: t.update(extra=torch.ones(1)), "surplus: extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            r"misshapen: model\.norm\.weight is \[3\], expected \[48\]",
        ),
        (lambda t: [t.pop(name) for name in list(t)[1:]], "and [0-9]+ more"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            r"quantized: model\.norm\.weight is I8",
        ),
    ],
)
def test_wrong_tensors_are_named(directory: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    edit(directory, lambda tensors: void(change(tensors)))
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def void(_: object) -> None:
    return None


def test_a_tensor_in_two_files(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, directory / "b.safetensors")
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"repeated: model\.norm\.weight \(in a\.safetensors and b\.safetensors\)"
    ):
        load(directory)


def test_pickles_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        load(directory)


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors files"):
        load(directory)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", b'{"a": 1}' * 9, b"\xff" * 64])
def test_not_a_safetensors_file(directory: Path, content: bytes) -> None:
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load(directory)


def test_a_file_cut_short(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        load(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "not a safetensors index"),
        ("[", "not a safetensors index"),
        (json.dumps({"weight_map": {"a": "absent.safetensors"}}), "not there: absent.safetensors"),
        (json.dumps({"weight_map": {"a": "../other.safetensors"}}), "not there: ../other.safetensors"),
    ],
)
def test_a_wrong_index(directory: Path, index: str, message: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_dummy_weights_follow_their_seed() -> None:
    model = TINY_MODELS["gemma3"]
    spec = load_spec({"architectures": [model.architecture], **model.options})
    one, same, other = (
        load_model(spec, None, dtype=torch.float32, device=CPU, load_format="dummy", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))
    weight = one.embedding.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert one.norm.weight.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.isfinite(logits(one)).all()


def test_no_directory() -> None:
    spec = load_spec({"architectures": ["LlamaForCausalLM"], **BASE})
    with pytest.raises(CheckpointError, match="no model directory"):
        load_model(spec, None, dtype=torch.float32, device=CPU)


def test_a_decoder_can_be_made_without_memory() -> None:
    spec = load_spec({"architectures": ["LlamaForCausalLM"]})
    decoder = Decoder(spec, torch.bfloat16, torch.device("meta"))
    assert sum(parameter.numel() for parameter in decoder.parameters()) == spec.num_parameters
