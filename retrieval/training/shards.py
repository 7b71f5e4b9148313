"""WebDataset shards: tar files in which members with the same stem are one sample.

`000012.jpg` with `000012.txt` (a caption a line) or, failing that, `000012.json` (its `caption`,
`captions` or `text`). Other members of a sample, such as `000012.mask.png`, are left alone.
Shards are read where they lie: a picture is a stretch of bytes of its tar file, so samples can be
taken in any order without unpacking (format: Aizman, Maltby, Breuel 2019, "High Performance I/O
For Large Scale Deep Learning").
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.media import SUFFIXES

__all__ = ["ShardPicture", "is_sharded", "read_shards"]

logger = logging.getLogger(__name__)

TEXT_KEYS = ("caption", "captions", "text")
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
}
"""What compressed files begin with, and the program that makes them whole."""

ENDINGS = (".tar", *(f".tar.{ending}" for ending in ("gz", "bz2", "xz", "zst")), ".tgz")
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class ShardPicture:
    """A picture inside a tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the member's bytes."""
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise MediaError("unreadable", f"{self.shard}: {error.strerror}") from error
        if len(data) < self.size:
            raise MediaError("truncated", f"{self.shard} ends in the middle of it")
        return data


def is_sharded(source: Path | str) -> bool:
    """Return whether `source` names tar files rather than a file of pairs."""
    return str(source).lower().endswith(ENDINGS) or Path(source).is_dir()


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
    for shard in _shards(source):
        members = _read(shard)
        alone = members.without_picture()
        if alone and not skip_missing:
            raise SourceError(
                f"{alone[0]} has no picture of the same name in the shard. Add it, or train "
                "without: --skip-broken"
            )
        for name in alone:
            logger.warning("left out of the training: %s has no picture", name)
        skipped += [(name, "there is no picture of the same name") for name in alone]
        for picture, texts in members.samples():
            pictures.append(picture)
            captions.append(texts)
    if not pictures:
        raise SourceError(f"{source} holds no pairs of a picture and a caption.")
    return pictures, captions, skipped


def _shards(source: Path | str) -> list[Path]:
    text = str(source)
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
    else:
        names = itertools.chain.from_iterable(
            # A file may well have brackets in its name.
            sorted(glob.glob(name))  # noqa: PTH207
            if glob.has_magic(name) and not Path(name).is_file()
            else [name]
            for name in ([text] if Path(text).is_file() else _expand(text))
        )
        found = [Path(name) for name in names]
    missing = [shard for shard in found if not shard.is_file()]
    if missing or not found:
        what = f"There is no shard {missing[0]}" if missing else f"There are no .tar files: {text}"
        raise SourceError(f"{what}. Give a .tar file, a folder of them, or a pattern.")
    return found


def _expand(text: str) -> list[str]:
    """Return the names that a pattern such as `a-{000..012}.tar` stands for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if match is None:
        return [text]
    first, last = match.groups()
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in _expand(
            f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}",
        )
    ]


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
    members = _Members()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, _, ending = member.name.rpartition(".")
                ending = ending.lower()
                name = f"{shard.name}/{member.name}"
                # Hidden ones are what macOS adds beside each file.
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                if f".{ending}" in SUFFIXES:
                    picture = ShardPicture(shard, name, member.offset_data, member.size)
                    members.pictures.setdefault(stem, picture)
                elif ending in {"txt", "json"}:
                    content = tar.extractfile(member)
                    assert content is not None
                    found = members.lines if ending == "txt" else members.fields
                    found[stem] = _captions(content.read(), name, ending)
                    members.texts.setdefault(stem, name)
            _check_end(shard, tar.offset)
    except tarfile.TarError as error:
        raise SourceError(_reason(shard, error)) from error
    except OSError as error:
        raise SourceError(f"{shard} cannot be read: {error.strerror or error}.") from error
    return members


def _check_end(shard: Path, offset: int) -> None:
    """Raise where no member begins although the tar file goes on: tarfile just stops there."""
    with shard.open("rb") as file:
        file.seek(offset)
        block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no member begins at byte {offset:,}")
    if not block:
        logger.warning("%s has no end mark: it may have been cut off", shard)


def _reason(shard: Path, error: tarfile.TarError) -> str:
    with shard.open("rb") as file:
        start = file.read(8)
    program = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if program is None:
        return f"{shard} is not a tar file, or damaged: {error}. Copy or make it again."
    return (
        f"{shard} is a compressed tar file, in which pictures cannot be read in any order. "
        f"Uncompress it first: {program}"
    )


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
