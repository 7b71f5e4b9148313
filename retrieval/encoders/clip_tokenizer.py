"""The byte-pair tokenizer of CLIP as a `tokenizers.Tokenizer`.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.4; the merges are read from the file that open_clip ships.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import open_clip
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

__all__ = ["clip_tokenizer"]

_START, _END = "<start_of_text>", "<end_of_text>"

_MERGES = 49152 - 256 - 2
"""As many lines of the file were used; the rest, and its first line, were not."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer() -> Tokenizer:
    """Return the tokenizer, ids equal to those of open_clip's `SimpleTokenizer`.

    It takes text that is cleaned already (`Clean.LOWER`) and sets neither length nor padding.
    """
    file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1]]
    symbols = _byte_symbols()
    vocabulary = symbols + [f"{symbol}</w>" for symbol in symbols]
    vocabulary += ["".join(merge) for merge in merges]
    vocabulary += [_START, _END]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(first, second) for first, second in merges],
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(_START, ids[_START]), (_END, ids[_END])],
    )
    tokenizer.add_special_tokens([_START, _END])
    return tokenizer


def _byte_symbols() -> list[str]:
    """Return a visible character for each byte, in the order of CLIP's vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    visible += range(ord("®"), ord("ÿ") + 1)
    rest = len(set(range(256)) - set(visible))
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(rest)]
