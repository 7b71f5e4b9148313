"""Vector indexes: unit vectors in, the most similar ids out. Knows nothing of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.indexes.choice import Choice
    from mmsearch.indexes.faiss import FaissIndex
    from mmsearch.indexes.faiss_approximate import ApproximateIndex
    from mmsearch.indexes.faiss_devices import Form
    from mmsearch.indexes.grown import GrownIndex

    Progress = Callable[[str, int, int], None]

__all__ = [
    "IndexFileError",
    "Neighbors",
    "VectorIndex",
    "base_of",
    "build",
    "gpu_bytes",
    "gpus",
    "grow",
    "merged",
    "open",
    "outgrown",
    "pays_on_gpu",
    "search_of",
    "settings_of",
    "to_gpu",
]


def build(
    ids: ArrayLike,
    vectors: ArrayLike,
    *,
    recall: float = 0.99,
    queries: ArrayLike | None = None,
    memory_bytes: int | None = None,
    exact_ms: float = 25.0,
    kind: Choice | None = None,
    for_now: bool = False,
    progress: Progress = lambda *_: None,
) -> VectorIndex:
    """Return the index that fits `float32[n, dim]` unit vectors under `int64[n]` ids.

    It is exact as long as a scan takes one query no more than `exact_ms` milliseconds on one core
    (fp16 vectors: about 5 ms for 100,000 × 512), and the vectors fit into `memory_bytes`. Beyond,
    it is approximate and tuned: `index.recall` is what was measured on queries held out of it.

    Args:
        ids: distinct, not negative.
        vectors: in float16 or float32.
        recall: the share of the true first ten to be found; 1 for exact search whatever it takes.
        queries: `float32[q, dim]`, vectors like those of later queries, where these differ from
            `vectors` (texts that look for pictures); imitated where fewer than 100 are given.
        memory_bytes: what searching may keep in memory.
        exact_ms: how long an exact scan may take.
        kind: this kind of index (`flat`, `ivf-rabitq`, `ivf-sq8`, `hnsw`), whatever a scan takes,
            from a thousand vectors on.
        for_now: make an exact one at once, to be replaced by what was asked for (see `outgrown`).
        progress: called with a stage, how much of it is done and how much there is.

    Raises:
        ValueError: as from `VectorIndex.add`, `recall` is not between 0.5 and 1, or no such kind.
    """
    import numpy as np

    from mmsearch.indexes import choice

    keys, rows = np.ascontiguousarray(ids, dtype=np.int64), np.asarray(vectors)
    if rows.dtype not in (np.float16, np.float32):
        rows = rows.astype(np.float32)
    return choice.build(
        keys,
        rows,
        choice.Settings(recall, exact_ms, memory_bytes, kind),
        queries=None if queries is None else np.asarray(queries, dtype=np.float32),
        for_now=for_now,
        progress=progress,
    )


def open(path: Path, *, mmap: bool = True) -> FaissIndex | ApproximateIndex | GrownIndex:
    """Open a saved index; `mmap` leaves the vectors on disk until a search touches them.

    Raises:
        IndexFileError: the file is missing, torn, damaged or of another kind.
    """
    from mmsearch.indexes.checked_file import CheckedFile
    from mmsearch.indexes.grown import GrownIndex, open_whole

    file = CheckedFile(path)
    if file.facts.get("kind") == "grown":
        return GrownIndex.read_from(file, mmap=mmap)
    return open_whole(file, mmap=mmap)


def grow(path: Path, changed: NDArray[np.int64], ids: ArrayLike, vectors: ArrayLike) -> VectorIndex:
    """Open a saved index and apply changes, at the cost of these; save it under another name.

    Args:
        path: the file; it must stay where it is for what is saved beside it, unless `base_path`
            of what is returned names another one, or None.
        changed: `int64[m]`, what was added, replaced or removed.
        ids: those of `changed` that are there now.
        vectors: theirs.

    Raises:
        IndexFileError: the file is missing, torn, damaged or of another kind.
    """
    from mmsearch.indexes.grown import GrownIndex

    index = open(path)
    grown = index if isinstance(index, GrownIndex) else GrownIndex(index, path)
    grown.remove(changed)
    grown.add(ids, vectors)
    return grown


def merged(index: VectorIndex) -> VectorIndex:
    """Return an index without the changes that lie beside its base; itself where they are few.

    It takes a copy of all, so it is nothing to do while somebody waits for an answer. The one given
    is used up.

    Raises:
        IndexFileError: its file is damaged.
    """
    from mmsearch.indexes.grown import GrownIndex

    if not isinstance(index, GrownIndex) or not index.worth_merging:
        return index
    # What rotted must not get a new checksum.
    index.check()
    return index.merged()


def to_gpu(
    index: VectorIndex,
    devices: Sequence[str] | None = None,
    *,
    memory_bytes: int | None = None,
    wait: bool = True,
    instead_of: VectorIndex | None = None,
) -> VectorIndex:
    """Copy an opened index to GPUs; what is returned answers as it does, faster.

    A flat index, and one with lists of one-bit codes if its `float16[n, dim]` vectors fit, is
    compared as a whole on the GPU (`exact` is true then); other lists become lists of eight-bit
    codes there, whose candidates are compared exactly on the CPU. With several GPUs each holds a
    part. What is returned may be searched by several threads, and `close` gives the GPU back.
    Where memory does not suffice, or ends later, one warning is logged and the CPU answers.

    Args:
        index: what `open` or `build` returned; taken over. An empty one is returned as it is.
        devices: names such as `cuda:0`; all GPUs that FAISS sees if not given.
        memory_bytes: what the copy may take on all of them together; 90 % of what is free if not
            given.
        wait: False to return at once; the CPU answers until the copy is there.
        instead_of: what `to_gpu` returned before and this takes the place of. It is closed, unless
            its copy is of the same vectors and serves on.

    Raises:
        ValueError: FAISS sees no GPU, or not those; or the index is of another kind.
        RuntimeError: something else than memory failed on the GPU, and `wait` is true.
    """
    from mmsearch.indexes import faiss_gpu
    from mmsearch.indexes.faiss_devices import Devices

    return faiss_gpu.to_gpu(
        index, Devices(devices), memory_bytes=memory_bytes, wait=wait, instead_of=instead_of
    )


def gpus() -> list[str]:
    """Return the names of all GPUs that FAISS can use, such as `cuda:0`."""
    from mmsearch.indexes import faiss_devices

    return faiss_devices.gpus()


def gpu_bytes(n: int, dim: int, form: Form) -> int:
    """Return what `n` vectors take on a GPU as `flat` or `ivf-sq8`, FAISS's workspace aside."""
    from mmsearch.indexes import faiss_devices

    return faiss_devices.gpu_bytes(n, dim, form)


def pays_on_gpu(n: int, dim: int, queries: int) -> bool:
    """Say whether so many queries, one after the other, are worth a copy of `n` vectors on a GPU.

    One query never is; a thousand are from about 170,000 vectors of 512 on.
    """
    from mmsearch.indexes import faiss_devices

    return faiss_devices.pays_on_gpu(n, dim, queries)


def outgrown(index: VectorIndex) -> bool:
    """Say whether an index has grown, or shrunk, so much that `build` would make another."""
    from mmsearch.indexes import choice

    return choice.outgrown(index)


def base_of(path: Path) -> Path:
    """Return the file that holds most of a saved index: another one where it has grown.

    Raises:
        IndexFileError: the file is missing, torn or of another kind.
    """
    from mmsearch.indexes.checked_file import CheckedFile

    facts = CheckedFile(path).facts
    return path.with_name(facts["base"]) if facts.get("kind") == "grown" else path


def search_of(path: Path) -> tuple[bool, float | None]:
    """Say whether a saved index is exact, and what recall was measured of it; without FAISS.

    Raises:
        IndexFileError: the file is missing, torn or of another kind.
    """
    from mmsearch.indexes.checked_file import CheckedFile

    facts = CheckedFile(base_of(path)).facts
    if facts["kind"] == "flat" or facts["effort"] >= facts["most_effort"]:
        return True, 1.0
    return False, min(facts["recall"].values()) if "recall" in facts else None


def settings_of(path: Path) -> dict[str, Any] | None:
    """Return what `build` was asked for, as its keyword arguments; None where no file says."""
    from mmsearch.indexes.checked_file import CheckedFile

    try:
        settings: dict[str, Any] | None = CheckedFile(base_of(path)).facts.get("settings")
    except IndexFileError:
        return None
    return settings
