"""What a model learns from: pictures, each with its captions, from files or from shards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.media import open_picture, read_bytes, upright_rgb
from mmsearch.retrieval.pairs import find_picture, locate_all, read_pairs
from mmsearch.retrieval.training.shards import is_sharded, read_shards

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Corpus", "PictureFile", "Source", "read_corpus"]

logger = logging.getLogger(__name__)

LISTED = 5
"""Broken files named in an error; all of them would hide what to do."""


class Source(Protocol):
    """Where the bytes of a picture are."""

    @property
    def name(self) -> str:
        """What to call it in messages and tables."""

    def read(self) -> bytes:
        """Return the encoded picture; raise `MediaError` where that fails."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path
    name: str

    def read(self) -> bytes:
        """Return the file's bytes."""
        return read_bytes(self.path)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pictures with captions.

    Attributes:
        pictures: where each is.
        captions: of each picture, at least one; none for pictures that only a teacher describes.
        contents: equal numbers for pictures with equal bytes; filled by `check`.
        skipped: (name, reason) of pictures that were left out.
    """

    pictures: Sequence[Source]
    captions: Sequence[Sequence[str]]
    contents: Sequence[int] = ()
    skipped: Sequence[tuple[str, str]] = field(default=())

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def pairs(self) -> int:
        """How many pairs of a picture and a caption there are."""
        return sum(map(len, self.captions))

    def load(self, row: int, *, at_least: int | None = None) -> Image.Image:
        """Return a picture, upright RGB; see `media.upright_rgb` for `at_least`.

        Raises:
            MediaError: it cannot be read; the message names it.
        """
        try:
            return upright_rgb(open_picture(self.pictures[row].read()), at_least=at_least)
        except MediaError as error:
            raise MediaError(error.kind, f"{self.pictures[row].name}: {error}") from error

    def select(self, rows: Iterable[int]) -> Corpus:
        """Return the corpus of these pictures."""
        chosen = list(rows)
        return Corpus(
            [self.pictures[row] for row in chosen],
            [self.captions[row] for row in chosen],
            [self.contents[row] for row in chosen] if self.contents else (),
            self.skipped,
        )

    def checked(
        self, *, skip_broken: bool, threads: int, progress: Callable[[str, int, int], None]
    ) -> Corpus:
        """Decode every picture once: better an error now than in the ninth hour.

        Args:
            skip_broken: leave broken pictures out and note them in `skipped`.
            threads: how many decode at once.
            progress: called with ("checking", done, total).

        Raises:
            SourceError: pictures are broken, and `skip_broken` is not set.
        """
        digests: dict[bytes, int] = {}
        contents, broken = [], {}
        pool = ThreadPoolExecutor(threads)
        try:
            for row, result in enumerate(pool.map(self._digest, range(len(self)))):
                contents.append(digests.setdefault(result, row) if isinstance(result, bytes) else 0)
                if isinstance(result, MediaError):
                    broken[row] = str(result)
                progress("checking", row + 1, len(self))
        finally:
            # Whoever interrupts does not wait for the other pictures.
            pool.shutdown(cancel_futures=True)
        if broken and not skip_broken:
            shown = "\n".join(f"  {reason}" for reason in list(broken.values())[:LISTED])
            raise SourceError(
                f"{len(broken):,} of {len(self):,} pictures cannot be read:\n{shown}\nMend them, "
                "delete their rows, or train without them: --skip-broken"
            )
        for reason in broken.values():
            logger.warning("left out of the training: %s", reason)
        whole = Corpus(self.pictures, self.captions, contents, self.skipped)
        kept = whole.select(row for row in range(len(self)) if row not in broken)
        gone = [(self.pictures[row].name, reason) for row, reason in broken.items()]
        return Corpus(kept.pictures, kept.captions, kept.contents, (*self.skipped, *gone))

    def split(self, share: float, *, seed: int, at_most: int = 1000) -> tuple[Corpus, Corpus]:
        """Return what to train on and what to hold out; equal pictures stay together.

        Raises:
            SourceError: there are too few different pictures to hold any out.
        """
        groups = sorted(set(self.contents)) if self.contents else list(range(len(self)))
        if len(groups) < 2:
            raise SourceError(
                "Training needs at least two different pictures, so that one can be held out to "
                f"measure with; there is {len(groups)}. Add pairs."
            )
        count = min(at_most, max(1, round(share * len(groups))), len(groups) - 1)
        order = np.random.default_rng(seed).permutation(len(groups))
        held = {groups[i] for i in order[:count]}
        group_of = self.contents or range(len(self))
        inside = [row for row in range(len(self)) if group_of[row] not in held]
        outside = [row for row in range(len(self)) if group_of[row] in held]
        return self.select(inside), self.select(outside)

    def fingerprint(self) -> str:
        """Return a hash of names and captions: a training is continued on the same pairs only."""
        digest = hashlib.sha256()
        for picture, captions in zip(self.pictures, self.captions, strict=True):
            digest.update(f"{picture.name}\0{chr(1).join(captions)}\n".encode(errors="replace"))
        return digest.hexdigest()

    def _digest(self, row: int) -> bytes | MediaError:
        try:
            data = self.pictures[row].read()
            # A thumbnail's worth of detail: decoding at an eighth still reads the whole file.
            upright_rgb(open_picture(data), at_least=64)
        except MediaError as error:
            return MediaError(error.kind, f"{self.pictures[row].name}: {error}")
        return hashlib.sha256(data).digest()


def read_corpus(
    source: Path | str,
    images: Path | None,
    *,
    split: str | None = None,
    default: str | None = None,
    skip_missing: bool = False,
) -> Corpus:
    """Read pairs from a file (see `pairs.read_pairs`) or from WebDataset shards.

    Args:
        source: a pairs file, a `.tar`, a folder of them, or a pattern such as `{0000..0009}.tar`.
        images: the folder that the pairs' paths are relative to; not for shards.
        split: for files that hold several (Karpathy's): which one.
        default: the one where `split` is not given.
        skip_missing: leave out captions whose picture does not exist, and note them.

    Raises:
        SourceError: something cannot be read; the message names the row.
    """
    if is_sharded(source):
        if split:
            raise SourceError(
                f"{source} has no splits to choose '{split}' from: leave the split away."
            )
        shown, texts, alone = read_shards(source, skip_missing=skip_missing)
        return Corpus(shown, texts, skipped=alone)
    file = Path(source)
    pairs = read_pairs(file, split, default=default)
    folders = [folder for folder in (images, file.parent) if folder is not None]
    paths = dict.fromkeys(pair.path for pair in pairs)
    found = locate_all(paths, lambda path: find_picture(folders, path))
    captions: dict[str, list[str]] = {}
    missing: dict[str, int] = {}
    for pair in pairs:
        if found[pair.path] is None:
            missing.setdefault(pair.path, pair.line)
        else:
            captions.setdefault(pair.path, []).append(pair.caption)
    if missing and not (skip_missing and captions):
        path, line = next(iter(missing.items()))
        others = f" (and {len(missing) - 1:,} others)" if len(missing) > 1 else ""
        places = " or ".join(str(folder) for folder in folders)
        raise SourceError(
            f"{source}, row {line}: there is no picture {path} in {places}{others}. Give the "
            "folder that the paths are relative to with --images, or train without these rows: "
            "--skip-broken"
        )
    for path, line in missing.items():
        logger.warning("left out of the training: %s, row %d: no picture %s", source, line, path)
    pictures = [PictureFile(file_, name) for name in captions if (file_ := found[name])]
    gone = [(path, f"row {line}: there is no such picture") for path, line in missing.items()]
    return Corpus(pictures, list(captions.values()), skipped=gone)
