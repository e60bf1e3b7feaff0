"""Which safetensors files make up a checkpoint, and what their headers say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thranite.errors import CheckpointError

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as its file's header describes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    start: int  # byte offset in the file's data
    num_bytes: int
    dtype: str  # as the format spells it


def find_files(directory: Path) -> list[Path]:
    """The index's files, or `model.safetensors`, or every safetensors file (Mistral's own "consolidated" aside)."""
    if (directory / INDEX).is_file():
        return indexed_files(directory)
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    found = sorted(p for p in directory.glob("*.safetensors") if not p.name.startswith("consolidated"))
    if found:
        return found
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory} holds pickled weights only ({', '.join(pickles[:4])}); loading a pickle runs its code",
            hint="convert them: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors",
        )
    raise CheckpointError(f"no safetensors files in {directory}", hint="load_format dummy runs without weights")


def indexed_files(directory: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{directory / INDEX} is not a safetensors index: {error!r}") from error
    outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if not (directory / name).is_file()]
    if outside or missing:
        raise CheckpointError(
            f"{directory / INDEX} names files that are not there: {', '.join(outside or missing)}",
            hint="finish the download of the model",
        )
    return [directory / name for name in names]


def read_header(path: Path) -> list[TensorEntry]:
    """The file's tensors in the order they lie."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if 2 <= size <= HEADER_LIMIT else b""
    try:
        tensors: dict[str, dict[str, Any]] = json.loads(header)
        tensors.pop("__metadata__", None)
        entries = [entry_of(path, name, fields) for name, fields in tensors.items()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error!r}") from error
    data_bytes = path.stat().st_size - 8 - size
    if any(entry.start + entry.num_bytes > data_bytes for entry in entries):
        raise CheckpointError(f"{path} is cut short: its header promises more data", hint="finish its download")
    return sorted(entries, key=lambda entry: entry.start)


def entry_of(path: Path, name: str, fields: dict[str, Any]) -> TensorEntry:
    start, stop = fields["data_offsets"]
    return TensorEntry(path, name, tuple(fields["shape"]), int(start), int(stop) - int(start), str(fields["dtype"]))
