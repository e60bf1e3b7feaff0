"""Tokenizers built in memory: one byte-level (GPT-2's way), one with byte fallback (sentencepiece's way)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BOS, EOS, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = {"bos_token": BOS, "eos_token": EOS}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("Ã", "©")]


def byte_level() -> Tokenizer:
    """Every byte is a token, a few merges on top; specials at the end of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [first + second for first, second in _MERGES]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BOS, EOS, IM_START, IM_END)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama-2's way: ▁ for spaces, <0xNN> for what has no token, the text's first space dropped again."""
    pieces = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "l", "o", "▁h", "▁he", "é"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁h", "e")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=None, special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", BOS, EOS)])
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path, **config: Any) -> Path:
    """A model directory's tokenizer files."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    given = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL_TOKENS, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(given))
    return directory
