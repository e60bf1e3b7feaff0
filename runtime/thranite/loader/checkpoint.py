"""Safetensors into a `Decoder`: names and shapes are checked before a byte is read, then tensor by tensor in place.

Files are mapped, so of a tensor that is split over ranks each reads its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from thranite.errors import CheckpointError
from thranite.layers.communicator import ALONE, Communicator
from thranite.loader.safetensors_files import TensorEntry, find_files, read_header
from thranite.models.decoder import Decoder
from thranite.models.dummy_weights import draw_dummy_weights
from thranite.models.spec import ModelSpec
from thranite.models.weights import EMBEDDING, HEAD, Target, canonical_name, weight_targets

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

MAPPED_BYTES = 1 << 30  # a file is mapped anew after this much, so that pages already copied are let go
NAMES_SHOWN = 12
WEIGHTS = ("F64", "F32", "F16", "BF16")  # others are codes of a quantization, not weights


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor of a file and its place in the model."""

    entry: TensorEntry
    target: Target

    @property
    def num_bytes(self) -> int:
        """What is read of it here."""
        return round(self.entry.num_bytes * self.target.share)


def load_model(
    spec: ModelSpec,
    directory: Path | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_format: str = "auto",
    progress: Progress | None = None,
    seed: int = 0,
    communicator: Communicator = ALONE,
) -> Decoder:
    """Build this rank's part of the decoder on `device` and fill it: from `directory`, or with random weights for
    load_format "dummy"."""
    with torch.no_grad():
        decoder = Decoder(spec, dtype, device, communicator=communicator)
        if load_format == "dummy":
            draw_dummy_weights(decoder, seed)
        elif directory is None:
            raise CheckpointError("no model directory to load weights from", hint="load_format dummy needs none")
        else:
            load_weights(decoder, directory, progress)
    return decoder.eval()


def load_weights(decoder: Decoder, directory: Path, progress: Progress | None = None) -> None:
    """Copy every tensor of the checkpoint straight to its place."""
    files = find_files(directory)
    entries = [entry for path in files for entry in plan_file(decoder, path)]
    copy = tied_copy(decoder, entries)
    transfers = match(decoder, directory, [entry for entry in entries if entry is not copy])
    if copy is not None:
        check_copy(copy, next(t for t in transfers if canonical_name(decoder, t.entry.name) == EMBEDDING))
    total = sum(transfer.num_bytes for transfer in transfers)
    done = 0
    for path in files:
        for part in mapped_parts([t for t in transfers if t.entry.path == path]):
            with safe_open(path, framework="pt", device="cpu") as handle:
                for transfer in part:
                    transfer.target.load(handle.get_tensor(transfer.entry.name))
                    done += transfer.num_bytes
                    if progress is not None:
                        progress(done, total)


def plan_file(decoder: Decoder, path: Path) -> list[TensorEntry]:
    """The file's tensors, in the order they lie, without those that the model is known not to need."""
    return [entry for entry in read_header(path) if canonical_name(decoder, entry.name) is not None]


def tied_copy(decoder: Decoder, entries: list[TensorEntry]) -> TensorEntry | None:
    """A tied head that lies beside the embedding. Alone it is the embedding."""
    tables = [entry for entry in entries if canonical_name(decoder, entry.name) == EMBEDDING]
    heads = [entry for entry in tables if entry.name.endswith(HEAD)]
    return heads[0] if heads and len(tables) > len(heads) else None


def check_copy(copy: TensorEntry, embedding: Transfer) -> None:
    """Raise CheckpointError where this rank's part of the head is not the embedding's: neither the tied model nor the
    other is then known to be meant."""
    with safe_open(copy.path, framework="pt") as head, safe_open(embedding.entry.path, framework="pt") as table:
        one, other = head.get_tensor(copy.name), table.get_tensor(embedding.entry.name)
        if copy.shape == embedding.entry.shape and all(
            torch.equal(part.of(one), part.of(other).to(one.dtype)) for part in embedding.target.parts
        ):
            return
    raise CheckpointError(
        f"{copy.name} in {copy.path} differs from {embedding.entry.name}, and config.json says that they are tied",
        hint='"tie_word_embeddings": false in config.json uses both; a checkpoint without the head uses the embedding',
    )


def match(decoder: Decoder, directory: Path, entries: list[TensorEntry]) -> list[Transfer]:
    """Pair tensors with places; whatever is left over on either side is an error that names it."""
    targets = weight_targets(decoder)
    found: dict[str, Transfer] = {}
    surplus, misshapen, repeated, packed = [], [], [], []
    for entry in entries:
        name = canonical_name(decoder, entry.name)
        target = targets.get(name or "")
        if name is None or target is None:
            surplus.append(entry.name)
        elif name in found:
            repeated.append(f"{entry.name} (in {found[name].entry.path.name} and {entry.path.name})")
        else:
            found[name] = Transfer(entry, target)
            if entry.dtype not in WEIGHTS:
                packed.append(f"{entry.name} is {entry.dtype}")
            if entry.shape != target.shape:
                misshapen.append(f"{entry.name} is {list(entry.shape)}, expected {list(target.shape)}")
    problems = {
        "missing": sorted(set(targets) - set(found)),
        "surplus": surplus,
        "misshapen": misshapen,
        "repeated": repeated,
        "quantized": packed,
    }
    if any(problems.values()):
        raise CheckpointError(
            f"the weights in {directory} do not fit {decoder.spec.architecture}: "
            + "; ".join(f"{kind}: {shortened(names)}" for kind, names in problems.items() if names),
            hint="config.json and the safetensors files must belong together",
        )
    return list(found.values())


def shortened(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def mapped_parts(transfers: list[Transfer]) -> Iterator[list[Transfer]]:
    """Runs of at most MAPPED_BYTES (at least one tensor), in the order given."""
    part: list[Transfer] = []
    size = 0
    for transfer in transfers:
        if part and size + transfer.num_bytes > MAPPED_BYTES:
            yield part
            part, size = [], 0
        part.append(transfer)
        size += transfer.num_bytes
    if part:
        yield part
