"""What indexing reports in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsearch.retrieval.blocks import NodeRate
from mmsearch.retrieval.pace import Stage

__all__ = ["IndexReport"]


@dataclass(slots=True)
class IndexReport:
    """What a run did.

    Attributes:
        added: pictures that were not there before.
        updated: pictures whose content changed.
        unchanged: pictures that were not read again, or were and are the same.
        moved: pictures that were found under another path.
        removed: pictures that are gone.
        problems: files that could not be indexed, in this or an earlier run.
        files: pictures the library holds now.
        captions: captions the library holds now.
        described: pictures about which a model wrote a caption in this run.
        unmatched: rows of the captions file whose picture is not in the library.
        embedded: pictures that went through the encoder.
        seconds: the whole run.
        shares: the part of the run, 0 to 1, that each stage was at work (`scan`, `decode`: the mean
            of its threads, `encode`, `write`); they overlap.
        bottleneck: the stage that held the run up for longest; None where none took any time.
        nodes: what each machine did, where several did the work; `shares` are of this one.
    """

    library: Path
    model: str
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    problems: int = 0
    files: int = 0
    captions: int = 0
    described: int = 0
    unmatched: list[str] = field(default_factory=list)
    embedded: int = 0
    seconds: float = 0.0
    shares: dict[Stage, float] = field(default_factory=dict)
    bottleneck: Stage | None = None
    nodes: list[NodeRate] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `index --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "moved": self.moved,
            "removed": self.removed,
            "problems": self.problems,
            "files": self.files,
            "captions": self.captions,
            "described": self.described,
            "captions_unmatched": len(self.unmatched),
            "embedded": self.embedded,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.embedded / max(self.seconds, 1e-9), 2),
            "shares": {str(stage): round(share, 3) for stage, share in self.shares.items()},
            "bottleneck": self.bottleneck,
            "nodes": [node.to_json() for node in self.nodes],
        }
