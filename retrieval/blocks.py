"""Blocks of files, as they go to other machines and come back: without what sends them.

A picture that takes its process down with it, time after time, is found out by going on alone
(`Ledger`), and left out.
"""

from __future__ import annotations

import time
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmsearch.errors import ClusterError, MediaError
from mmsearch.retrieval.embedding import Embedded, embed_files
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.reading import Unread
from mmsearch.retrieval.rerankers.bundled import region_reader
from mmsearch.retrieval.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.scan import FoundFile

__all__ = [
    "Block",
    "BlockEmbedder",
    "Done",
    "KnownContents",
    "Ledger",
    "NodeRate",
    "NodeRates",
    "blocks_of",
    "in_order",
]

BATCHES_PER_BLOCK = 4
MOST_BATCHES_PER_BLOCK = 16
BLOCKS_PER_NODE = 16
"""A block is what is lost with a machine, and what an actor begins and ends with: small blocks
spread well and lose little, large ones keep the encoder fed."""

TRIES_TOGETHER = 2
"""After so many deaths of a block's process its pictures go one at a time."""

TRIES_ALONE = 2
"""After so many deaths while it was read alone a picture is left out; one may be a machine's."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some of the files of a run, in their order.

    Attributes:
        number: from 0.
        files: by path, as a scan lists them.
    """

    number: int
    files: dict[str, FoundFile]


@dataclass(frozen=True, slots=True)
class Done:
    """A block that went through an encoder.

    Attributes:
        number: the block's.
        node: the machine that did it.
        began: seconds since 1970, by that machine's clock; so is `ended`.
        bottleneck: the stage that it waited for.
        batches: what became of its files, an encoder's batch at a time.
    """

    number: int
    node: str
    began: float
    ended: float
    bottleneck: Stage | None
    batches: list[Embedded]


@dataclass(frozen=True, slots=True)
class NodeRate:
    """What one machine did for a run.

    Attributes:
        node: its host's name.
        pictures: that it read.
        images_per_second: from its first block's beginning to its last one's end.
    """

    node: str
    pictures: int
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that `index --json` prints."""
        return {
            "node": self.node,
            "pictures": self.pictures,
            "images_per_second": round(self.images_per_second, 2),
        }


@dataclass(slots=True)
class NodeRates:
    """Counts what each machine did, from the blocks that come from it."""

    _by_node: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def add(self, done: Done) -> None:
        """Count a block."""
        pictures, began, ended = self._by_node.get(done.node, (0, done.began, done.ended))
        pictures += sum(len(batch.items) for batch in done.batches)
        self._by_node[done.node] = pictures, min(began, done.began), max(ended, done.ended)

    def rates(self) -> list[NodeRate]:
        """Return each machine's share, by name."""
        return [
            NodeRate(node, pictures, pictures / max(ended - began, 1e-9))
            for node, (pictures, began, ended) in sorted(self._by_node.items())
        ]

    def remark(self) -> str:
        """Return what a progress bar may say of it: "3 machines"."""
        count = len(self._by_node)
        return f"{count} machine{'' if count == 1 else 's'}"


def blocks_of(files: Mapping[str, FoundFile], batch_size: int, nodes: int) -> Iterator[Block]:
    """Yield blocks of whole batches, so that a batch holds what it holds on one machine."""
    batches = len(files) // max(1, batch_size * nodes * BLOCKS_PER_NODE)
    size = batch_size * min(max(batches, BATCHES_PER_BLOCK), MOST_BATCHES_PER_BLOCK)
    rest = iter(files.items())
    for number in count():
        part = dict(islice(rest, size))
        if not part:
            return
        yield Block(number, part)


def in_order(done: Iterable[Done], blocks: int) -> Generator[Done, None, None]:
    """Yield each of `blocks` once and in order, whatever order they come in and how often.

    Those that came too early are held; Ray sends them in order, so that these are few.

    Raises:
        ClusterError: one never came.
    """
    early: dict[int, Done] = {}
    due = 0
    for one in done:
        if one.number < due or one.number in early:
            continue
        early[one.number] = one
        while due in early:
            yield early.pop(due)
            due += 1
    if due < blocks:
        raise ClusterError(
            f"The cluster finished, but {blocks - due:,} of {blocks:,} parts of the work never "
            "came. What came is saved: run the same command again."
        )


class KnownContents(Container[bytes]):
    """Hashes of contents, in memory that processes share."""

    def __init__(self, hashes: NDArray[np.uint8]) -> None:
        """Take `uint8[n, 32]`, sorted as bytes are."""
        self._hashes = hashes

    @staticmethod
    def packed(contents: Iterable[bytes]) -> NDArray[np.uint8]:
        """Return what the constructor takes, of hashes in any order."""
        joined = b"".join(sorted(contents))
        return np.frombuffer(joined, np.uint8).reshape(-1, sha256().digest_size)

    def __contains__(self, digest: object) -> bool:
        assert isinstance(digest, bytes)
        low, high = 0, len(self._hashes)
        while low < high:
            middle = (low + high) // 2
            if self._hashes[middle].tobytes() < digest:
                low = middle + 1
            else:
                high = middle
        return low < len(self._hashes) and self._hashes[low].tobytes() == digest


class Tries(Protocol):
    """Remembers what was begun, wherever that was."""

    def begin(self, number: int) -> int:
        """Hear that a block begins; return how many times it began before."""

    def alone(self, path: str) -> int:
        """Hear that a picture begins alone; return how many times it did and never ended."""

    def ended(self, path: str) -> None:
        """Hear that a picture that began alone has ended."""


class Ledger:
    """What was begun and perhaps never ended, kept where no picture can do harm."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._pictures: dict[str, int] = {}

    def begin(self, number: int) -> int:
        """Hear that a block begins; return how many times it began before."""
        before = self._blocks.get(number, 0)
        self._blocks[number] = before + 1
        return before

    def alone(self, path: str) -> int:
        """Hear that a picture begins alone; return how many times it did and never ended."""
        before = self._pictures.get(path, 0)
        self._pictures[path] = before + 1
        return before

    def ended(self, path: str) -> None:
        """Hear that a picture that began alone has ended."""
        self._pictures.pop(path, None)


class BlockEmbedder:
    """Blocks of paths in, vectors out, with an encoder that was loaded once."""

    def __init__(
        self,
        root: Path,
        encoder: Encoder,
        contents: Container[bytes],
        tries: Tries,
        *,
        node: str,
        threads: int,
    ) -> None:
        """Prepare to embed the files of one library.

        Args:
            root: what paths are relative to.
            encoder: embeds the pictures.
            contents: hashes of what is not decoded.
            tries: hears what begins.
            node: this machine's name.
            threads: how many pictures are read at once, about.
        """
        self._root = root
        self._encoder = encoder
        self._contents = contents
        self._tries = tries
        self._node = node
        self._threads = threads
        self._reranker = region_reader(encoder)
        self._alone = Lock()

    def embed(self, block: Block) -> Done:
        """Return what became of a block's files."""
        began = time.time()
        pace = Pace()
        together = self._tries.begin(block.number) < TRIES_TOGETHER
        if together:
            batches = list(self._embed(block.files, pace))
        else:
            batches = list(self._one_by_one(block.files, pace))
        return Done(block.number, self._node, began, time.time(), pace.bottleneck(), batches)

    def _embed(self, files: Mapping[str, FoundFile], pace: Pace) -> Iterator[Embedded]:
        return embed_files(
            self._root,
            files,
            self._encoder,
            contents=self._contents,
            pace=pace,
            workers=Workers(start=self._threads + 1, most=2 * self._threads + 4),
            reranker=self._reranker,
        )

    def _one_by_one(self, files: Mapping[str, FoundFile], pace: Pace) -> Iterator[Embedded]:
        for path, file in files.items():
            # One in the whole process: a block beside it that goes on like this must not be blamed.
            with self._alone:
                if self._tries.alone(path) >= TRIES_ALONE:
                    reason = (
                        "the process that read it died, and so did the next ones: it may need more "
                        "memory than there is, or break its decoder"
                    )
                    batches = [Embedded([Unread(path, MediaError("worker-died", reason))], {}, {})]
                else:
                    batches = list(self._embed({path: file}, pace))
                    self._tries.ended(path)
            yield from batches
