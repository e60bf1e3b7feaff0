"""Turn a GGUF file into an ordinary model directory: config.json, model.safetensors, tokenizer and chat template.

Quantized blocks are unpacked. Needs the packages of the extra `demo` (gguf, accelerate).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from thranite.cli.flags import add_flags, build
from thranite.config import option
from thranite.errors import ConfigError
from thranite.loader.import_gguf import ImportDType, import_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    file: str = field(metadata={"help": "the .gguf file"})
    to: str | None = option(None, "directory to write; must be given, and new or empty")
    dtype: ImportDType = option("bfloat16", "type of the unpacked weights")

    def __post_init__(self) -> None:
        if self.to is None:
            raise ConfigError("--to is missing", "name the directory to write")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, ImportConfig, "import")


def run(args: argparse.Namespace) -> int:
    config = build(ImportConfig, args, os.environ)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar drawn into a log is noise
    print(import_gguf(Path(config.file), Path(config.to or ""), config.dtype))
    return 0
