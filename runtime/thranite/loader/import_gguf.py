"""GGUF file → ordinary model directory: config, safetensors, tokenizer with its chat template.

transformers reads the file and unpacks its quantized blocks; what is written is a plain dense checkpoint that any
reader of safetensors takes. The directory appears whole or not at all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thranite.errors import CheckpointError, ConfigError, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

ImportDType = Literal["bfloat16", "float16", "float32"]
MAGIC = b"GGUF"
# What transformers writes of every config and no model reads.
NOISE = (
    "quantization_config", "_name_or_path", "_model_name_or_path", "id2label", "label2id", "problem_type",
    "chunk_size_feed_forward", "return_dict", "output_attentions", "output_hidden_states",
)  # fmt: skip
NEEDED = ("gguf", "accelerate")


def import_gguf(source: Path, target: Path, dtype: ImportDType = "bfloat16") -> Path:
    """Write `source` as a model directory `target`, which must not hold a model yet. Returns `target`."""
    _check(source, target)
    with _whole_directory(target) as work:
        max_length = _write_model(source, work, dtype)
        _write_tokenizer(source, work, max_length)
    return target


def _check(source: Path, target: Path) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"importing GGUF needs {' and '.join(missing)}", "pip install 'thranite[demo]'")
    if not source.is_file():
        raise ModelNotFound(f"no such file: {source}")
    with source.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{source} is not a GGUF file: it does not start with {MAGIC.decode()}")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file", "name a new directory")
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty", "name a new directory, or remove this one first")


def _read_names(source: Path) -> list[str]:
    """Of the file's tensors. Raises for what transformers passes over in silence: half of a model, scaled positions."""
    import gguf

    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointError(f"{source} cannot be read: {error}", "it may be cut short: fetch it again") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    names = [tensor.name for tensor in reader.tensors]
    if int(fields.get("split.count", 1)) > 1:
        raise UnsupportedModel(
            f"{source} is one of {fields['split.count']} files of a model", "join them: llama-gguf-split --merge"
        )
    scaling = fields.get(f"{fields.get('general.architecture')}.rope.scaling.type", "none")
    scaled = [name for name in names if name.startswith(("rope_freqs", "rope_factors"))]
    if scaling != "none" or scaled:
        raise UnsupportedModel(
            f"{source} scales positions ({', '.join(scaled) or scaling}), which is not read from GGUF files",
            "take the model's safetensors",
        )
    return names


@contextmanager
def _whole_directory(target: Path) -> Iterator[Path]:
    """A work directory beside `target` that takes its place at the end, and is removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.incomplete-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp's 0700 would hide the model from other users
        os.replace(work, target)  # an empty directory may be replaced
    except BaseException:
        shutil.rmtree(work)
        raise


def _write_model(source: Path, work: Path, dtype: ImportDType) -> int:
    """config.json, generation_config.json, model.safetensors. Returns the model's length in tokens."""
    names = _read_names(source)
    import torch
    import transformers
    from safetensors.torch import save_file

    # From 5.20 or so on transformers can keep blocks packed; asking for dense weights is only possible there.
    packed = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        raise UnsupportedModel(f"transformers cannot read {source}: {error}") from error
    model, found = loaded
    tied = bool(model.config.tie_word_embeddings)
    tensors = dense_tensors(model.state_dict(), tied=tied, source=source)
    _check_whole(source, names, tensors, sorted(set(found["missing_keys"]) & set(tensors)))
    save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    (work / "model.safetensors").chmod(0o644)  # safetensors writes 0600
    config = {key: value for key, value in model.config.to_dict().items() if key not in NOISE}
    config |= {"architectures": [type(model).__name__], "dtype": dtype}
    (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(work)
    return int(model.config.max_position_embeddings)


def _check_whole(source: Path, names: list[str], tensors: dict[str, Tensor], missing: list[str]) -> None:
    """transformers draws what is missing at random, and leaves out what its model has no place for, such as biases."""
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} of the model's tensors: {', '.join(missing[:4])}")
    if len(names) != len(tensors):
        biases = [name for name in names if name.endswith(".bias")]
        raise UnsupportedModel(
            f"{source} holds {len(names)} tensors, of which the model takes {len(tensors)}"
            + (f"; biases may be the others: {', '.join(biases[:4])}" if biases else "")
        )


def dense_tensors(state: dict[str, Tensor], *, tied: bool, source: Path) -> dict[str, Tensor]:
    """The tensors to save: floating point only, contiguous, a tied output head left out."""
    result = {}
    for name, tensor in state.items():
        if tied and name == "lm_head.weight":
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {name} came as {tensor.dtype}, still packed")
        result[name] = tensor.detach().contiguous()
    return result


def _write_tokenizer(source: Path, work: Path, max_length: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    tokenizer.model_max_length = max_length
    # One file holds the chat template, where readers of every age look for it.
    tokenizer.save_pretrained(work, save_jinja_files=False)
    path = work / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for key in ("is_local", "local_files_only", "gguf_file"):  # how it was read, not what it is
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
