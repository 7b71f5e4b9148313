"""WebDataset shards: tar files in which members with the same stem are one sample.

`000012.jpg` with `000012.txt` (a caption a line) or, failing that, `000012.json` (its `caption`,
`captions` or `text`). Other members of a sample, such as `000012.mask.png`, are left alone.
Shards are read where they lie: a picture is a stretch of bytes of its tar file, so samples can be
taken in any order without unpacking (format: Aizman, Maltby, Breuel 2019, "High Performance I/O
For Large Scale Deep Learning").
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.media import SUFFIXES
from mmsearch.retrieval.tar_files import (
    TAR_ENDINGS,
    TarDamaged,
    TarUnended,
    expand_pattern,
    members,
    read_stretch,
)

__all__ = ["ShardPicture", "is_sharded", "read_shards"]

logger = logging.getLogger(__name__)

TEXT_KEYS = ("caption", "captions", "text")


@dataclass(frozen=True, slots=True)
class ShardPicture:
    """A picture inside a tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the member's bytes."""
        return read_stretch(self.shard, self.offset, self.size)


def is_sharded(source: Path | str) -> bool:
    """Return whether `source` names tar files rather than a file of pairs."""
    return str(source).lower().endswith(TAR_ENDINGS) or Path(source).is_dir()


def read_shards(
    source: Path | str, *, skip_missing: bool = False
) -> tuple[list[ShardPicture], list[list[str]], list[tuple[str, str]]]:
    """Return the pictures of all shards, the captions of each, and what was left out.

    Args:
        source: a tar file, a folder of them, or a pattern such as `{0000..0009}.tar`.
        skip_missing: leave out captions without a picture: (name, reason) of each.

    Raises:
        SourceError: there are no shards, one is no tar file, or a sample lacks its picture or its
            caption; the message names it.
    """
    pictures: list[ShardPicture] = []
    captions: list[list[str]] = []
    skipped: list[tuple[str, str]] = []
    for shard in expand_pattern(source):
        found = _read(shard)
        alone = found.without_picture()
        if alone and not skip_missing:
            raise SourceError(
                f"{alone[0]} has no picture of the same name in the shard. Add it, or train "
                "without: --skip-broken"
            )
        for name in alone:
            logger.warning("left out of the training: %s has no picture", name)
        skipped += [(name, "there is no picture of the same name") for name in alone]
        for picture, texts in found.samples():
            pictures.append(picture)
            captions.append(texts)
    if not pictures:
        raise SourceError(f"{source} holds no pairs of a picture and a caption.")
    return pictures, captions, skipped


@dataclass(slots=True)
class _Members:
    """What a shard holds of samples, by name without the last ending.

    Attributes:
        pictures: the first of each name.
        lines: captions from `.txt`.
        fields: captions from `.json`, which may hold anything else.
        texts: the member that each caption is from.
    """

    pictures: dict[str, ShardPicture] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def samples(self) -> Iterator[tuple[ShardPicture, list[str]]]:
        for stem, picture in self.pictures.items():
            captions = self.lines.get(stem) or self.fields.get(stem)
            if captions:
                yield picture, captions
            elif stem in self.texts or not self._is_more(stem):
                raise SourceError(
                    f"{picture.name} has no caption: a .txt or .json of the same name with a "
                    "caption is expected in the shard."
                )

    def without_picture(self) -> list[str]:
        return [
            name
            for stem, name in self.texts.items()
            if stem not in self.pictures and not self._is_more(stem)
        ]

    def _is_more(self, stem: str) -> bool:
        """Return whether this is one more member of a sample that has a picture."""
        folder, slash, name = stem.rpartition("/")
        key = f"{folder}{slash}{name.partition('.')[0]}"
        return key != stem and key in self.pictures


def _read(shard: Path) -> _Members:
    found = _Members()
    try:
        for member in members(shard):
            stem, _, ending = member.name.rpartition(".")
            ending = ending.lower()
            name = f"{shard.name}/{member.name}"
            if f".{ending}" in SUFFIXES:
                picture = ShardPicture(shard, name, member.offset, member.size)
                found.pictures.setdefault(stem, picture)
            elif ending in {"txt", "json"}:
                content = read_stretch(shard, member.offset, member.size)
                texts = found.lines if ending == "txt" else found.fields
                texts[stem] = _captions(content, name, ending)
                found.texts.setdefault(stem, name)
    except TarUnended as error:
        logger.warning("%s", error)
    except TarDamaged as error:
        raise SourceError(str(error)) from error
    except MediaError as error:
        reason = f"{shard} is not a tar file, or damaged: {error}. Copy or make it again."
        raise SourceError(reason) from error
    except OSError as error:
        raise SourceError(f"{shard} cannot be read: {error.strerror or error}.") from error
    return found


def _captions(content: bytes, name: str, ending: str) -> list[str]:
    values: list[object] = []
    try:
        text = content.decode("utf-8-sig")
        if ending == "txt":
            values = [*text.splitlines()]
        else:
            document = json.loads(text)
            fields = document if isinstance(document, dict) else {}
            value: object = next((fields[key] for key in TEXT_KEYS if fields.get(key)), [])
            values = value if isinstance(value, list) else [value]
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} cannot be read as {ending}: {error}.") from error
    captions = []
    for value in values:
        if not isinstance(value, str):
            raise SourceError(f"{name}: a caption must be a text, not {value!r:.50}.")
        # JSON can spell half a character (a lone surrogate), which no tokenizer reads.
        captions.append(" ".join(value.encode(errors="replace").decode().split()))
    return [caption for caption in captions if caption]
