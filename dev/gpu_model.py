"""Make a part of SmolLM2 for a GPU machine without a network: its first layers, small enough to copy there.

A folder with config.json, weights.safetensors (matrices as int8 with one scale a row, norms as they are) and
tokens.json (token ids of this repository's documents, in pieces of equal length). `unpack` makes a model directory of
it, in bfloat16: the numbers that both implementations then run on are exactly these, so the rounding to int8 favours
neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dev.fetch_smollm2 import is_present, model_directory

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".gpu" / "smollm2-first-layers"
PIECES, PIECE = 16, 512
SCALE = ".scale"


def pack(source: Path, folder: Path, layers: int) -> None:
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = layers
    folder.mkdir(parents=True, exist_ok=True)
    packed = {}
    for name, tensor in kept(load_file(source / "model.safetensors"), layers):
        if tensor.dim() == 2:
            packed[name], packed[name + SCALE] = rounded(tensor.float())
        else:
            packed[name] = tensor
    save_file(packed, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokens.json").write_text(json.dumps(sample(source)))


def kept(tensors: dict[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    """What the first layers need, the embedding and the last norm among it."""
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "layers" not in parts or int(parts[parts.index("layers") + 1]) < layers:
            yield name, tensor.contiguous()


def rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and fp32 [N, 1]: matrix ≈ integers · scale."""
    scale = matrix.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (matrix / scale).round().to(torch.int8), scale


def sample(source: Path) -> list[list[int]]:
    """PIECES pieces of PIECE token ids of the repository's documents."""
    from tokenizers import Tokenizer

    text = "\n\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    stride = (len(ids) - PIECE) // (PIECES - 1)
    return [ids[first * stride : first * stride + PIECE] for first in range(PIECES)]


def unpack(folder: Path, directory: Path) -> None:
    """A model directory in bfloat16."""
    packed = load_file(folder / "weights.safetensors")
    tensors = {
        name: (tensor.float() * packed[name + SCALE] if name + SCALE in packed else tensor).to(torch.bfloat16)
        for name, tensor in packed.items()
        if not name.endswith(SCALE)
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text((folder / "config.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=3, help="28 MB and 3.5 MB a layer (default: 3)")
    options = parser.parse_args()
    source = model_directory()
    if not is_present(source):
        parser.error(f"{source} holds no model; `make model` fetches it")
    pack(source, FOLDER, options.layers)
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{FOLDER}: {options.layers} layers, {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
