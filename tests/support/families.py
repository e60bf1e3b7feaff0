"""Every family's tiny model over ranks: made, loaded and run alike, whatever the ranks are.

`python -m tests.support.families RANK FOLDER DIRECTORY…` is one rank of real groups over gloo, which meet in FOLDER: it
runs the models one after another and writes what came of each to SIZE-RANK.json there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.support.torch_engine import finish, tokens
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.layers.communicator import ALONE, Communicator
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.parallel.process_group import join
from thranite.request import EngineRequest
from thranite.runner.executor import TorchExecutor
from thranite.sampling_params import TokenParams

CPU = torch.device("cpu")
OUTPUT = 8
SIZES = (2, 4)


def load(directory: Path, communicator: Communicator = ALONE) -> Decoder:
    spec = load_spec(json.loads((directory / "config.json").read_text()), max_model_len=96)
    return load_model(spec, directory, dtype=torch.float32, device=CPU, communicator=communicator)


def engine_over(model: Decoder) -> Engine:
    settings = EngineSettings(
        layout=plan_kv_layout(model.rank_spec, 8, "float32"),
        num_blocks=200,
        vocab_size=model.spec.vocab_size,
        max_model_len=96,
        max_num_seqs=8,
        max_num_batched_tokens=40,
        overlap=True,
    )
    return Engine(settings, TorchExecutor(model, model.rank_spec, settings, CPU))


def requests() -> list[EngineRequest]:
    prompts = [tuple((7 * i * i + 3 * i + salt) % 190 + 3 for i in range(count)) for salt, count in ((1, 50), (5, 9))]
    greedy = TokenParams(OUTPUT, seed=0, temperature=0.0, logprobs=1, prompt_logprobs=1)
    sampled = TokenParams(OUTPUT, seed=3, temperature=1.0, n=2)
    return [
        EngineRequest("long", prompts[0], greedy),
        EngineRequest("short", prompts[1], greedy),
        EngineRequest("sampled", prompts[0], sampled),
    ]


def generate(model: Decoder) -> tuple[dict[tuple[str, int], list[int]], list[float]]:
    """Tokens, and the logprobs of the greedy requests' prompts and outputs."""
    deltas = finish(engine_over(model), requests())
    scores = [score for rows in deltas.values() for delta in rows for score in delta.prompt_logprobs or ()]
    scores += [score for rows in deltas.values() for delta in rows for score in delta.logprobs or ()]
    return {key: tokens(rows) for key, rows in deltas.items()}, [score.logprob for score in scores if score is not None]


def main(rank: int, folder: Path, directories: Sequence[Path]) -> None:
    """A group of the first two ranks, then one of all."""
    torch.set_num_threads(1)
    for size in SIZES:
        if rank < size:
            ranks = join(rank, size, str(folder / f"store-{size}"), CPU)
            found = [generate(load(directory, ranks)) for directory in directories]
            ranks.close()
            (folder / f"{size}-{rank}.json").write_text(
                json.dumps([[sorted([*key, text] for key, text in texts.items()), scores] for texts, scores in found])
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [Path(text) for text in sys.argv[3:]])
