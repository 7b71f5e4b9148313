"""The text transform: the one way a caption becomes the token ids a text tower reads.

Training, indexing and querying all come through here, so they cannot differ. Needs no torch.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["Clean", "TextPreprocess"]


class Clean(StrEnum):
    """What happens to a text before the tokenizer sees it; the names are open_clip's own."""

    NONE = "none"
    """Nothing: the tokenizer's own normaliser does it all."""

    WHITESPACE = "whitespace"
    """Undo HTML entities, repair typography, one space between words."""

    LOWER = "lower"
    """`WHITESPACE`, then lower case: the CLIP tokenizer's own cleaning."""

    CANONICALIZE = "canonicalize"
    """`LOWER` without punctuation: how SigLIP was trained."""


@dataclass(frozen=True, slots=True)
class TextPreprocess:
    """Turn texts into `input_ids` and `attention_mask`, both int64[n, t].

    Attributes:
        max_tokens: longer texts are cut; the tokenizer's own last token is kept.
        pad_to: fixed length t; `None` pads to the longest text of the batch.
        pad_id: id of the padding.
        clean: what is done to the text first.
        pad_left: the padding stands before the text, not after it.
    """

    max_tokens: int
    pad_to: int | None = None
    pad_id: int = 0
    clean: Clean = Clean.NONE
    pad_left: bool = False

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TextPreprocess:
        """Read what `to_json` wrote; raise KeyError, TypeError or ValueError where it is wrong."""
        padding = fields.get("padding") or {}
        to = padding.get("to")
        found = cls(
            max_tokens=int(fields["max_tokens"]),
            pad_to=None if to is None else int(to),
            pad_id=int(padding.get("id", 0)),
            clean=Clean(fields.get("clean", Clean.NONE)),
            pad_left=padding.get("side", "right") == "left",
        )
        if found.max_tokens < 1 or (found.pad_to is not None and found.pad_to < found.max_tokens):
            raise ValueError(f"max_tokens {found.max_tokens}, padding to {found.pad_to}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, defaults left out; equal fields mean equal ids."""
        fields: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.pad_to is not None or self.pad_id:
            fields["padding"] = {"to": self.pad_to, "id": self.pad_id}
        if self.pad_left:
            fields.setdefault("padding", {})["side"] = "left"
        if self.clean is not Clean.NONE:
            fields["clean"] = str(self.clean)
        return fields

    def configure(self, tokenizer: Tokenizer) -> Tokenizer:
        """Set a tokenizer's truncation and padding to this, and return it."""
        tokenizer.enable_truncation(self.max_tokens)
        # The token's name is never looked up: only its id goes into the tower.
        tokenizer.enable_padding(
            direction="left" if self.pad_left else "right",
            pad_id=self.pad_id,
            pad_token="[PAD]",
            length=self.pad_to,
        )
        return tokenizer

    def __call__(
        self, tokenizer: Tokenizer, texts: Sequence[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return `(input_ids, attention_mask)` of at least one text; `tokenizer` is configured."""
        encodings = tokenizer.encode_batch([self.cleaned(text) for text in texts])
        return (
            np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        )

    def lengths(self, tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return `int64[n]`, the tokens of texts without padding; all alike where that is fixed."""
        if self.pad_to is not None:
            return np.full(len(texts), self.pad_to, dtype=np.int64)
        encodings = tokenizer.encode_batch([self.cleaned(text) for text in texts])
        return np.array([sum(each.attention_mask) for each in encodings], dtype=np.int64)

    def cleaned(self, text: str) -> str:
        """Return a text as the tokenizer gets it."""
        if self.clean is Clean.NONE:
            return text
        # Twice, as open_clip does: captions from the web are often escaped twice.
        text = " ".join(html.unescape(html.unescape(_repaired(text))).split())
        if self.clean is Clean.WHITESPACE:
            return text
        if self.clean is Clean.CANONICALIZE:
            text = " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).split())
        return text.lower()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **{one: unicodedata.normalize("NFKC", one) for one in "ﬀﬁﬂﬃﬄﬅﬆĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌ"},
        **{chr(wide): chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)},
        "\u3000": " ",
        "\ufeff": None,
        # What steers the drawing of text, not what is written. Joiners of emoji stay.
        **dict.fromkeys((*range(0x206A, 0x2070), *range(0xFFF9, 0xFFFD)), None),
        **dict.fromkeys((*range(9), 0x0B, *range(0x0E, 0x20), 0x7F), None),
    }
)
_TERMINAL = re.compile("\x1b\\[((?:\\d|;)*)([a-zA-Z])")


def _repaired(text: str) -> str:
    """Do what ftfy 6 does to text that was decoded rightly (curly quotes, ligatures, widths …).

    Its guesses at text that was decoded wrongly are left out: they would make a model's answers
    depend on that package's version.
    """
    return unicodedata.normalize("NFC", _TERMINAL.sub("", text).translate(_TYPOGRAPHY))
