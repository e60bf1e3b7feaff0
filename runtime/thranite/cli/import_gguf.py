"""Turn a GGUF file into an ordinary model directory: config.json, model.safetensors, tokenizer and chat template.

Quantized blocks are unpacked. Needs the packages of the extra `demo` (gguf, accelerate).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from thranite.loader.import_gguf import ImportDType, import_gguf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the .gguf file")
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True, help="directory to write; must be new or empty"
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(ImportDType),
        default="bfloat16",
        help="type of the unpacked weights (default: bfloat16)",
    )


def run(args: argparse.Namespace) -> int:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar drawn into a log is noise
    print(import_gguf(args.file, args.to, args.dtype))
    return 0
