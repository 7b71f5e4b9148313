"""GPUs: what fits on them, when it pays, and FAISS's indexes there."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import faiss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Devices", "Form", "gpu_bytes", "gpus", "pays_on_gpu"]

Form = Literal["flat", "ivf-sq8"]
"""How vectors stand on a GPU: in half precision, all compared, or as bytes in lists."""

PIECE_BYTES = 1 << 32
"""Rows go into pieces of this size. FAISS makes room for a block by copying what is there, so only
one piece is there twice; and its faster kernels count coordinates in 31 bits."""
BLOCK = 1 << 26
"""Coordinates that are copied at once: 256 MiB in float32, what FAISS takes at once too."""
WORKSPACE = 512 << 20
"""Bytes that FAISS keeps on each GPU for its own use (1.5 GiB unless told otherwise)."""
USABLE = 0.9
"""Share of the free memory that is taken: others use the GPU too, and memory has gaps."""


def gpu_bytes(n: int, dim: int, form: Form) -> int:
    """Return what `n` vectors take on a GPU, FAISS's workspace aside."""
    if form == "flat":
        rows = n * (2 * dim + 4)  # FAISS keeps the norms too.
        return rows + min(rows, PIECE_BYTES)
    lists = round(4 * math.sqrt(n))
    # Ids have 64 bits, and a list is filled up to a multiple of 32 vectors.
    return (n + 16 * lists) * (dim + 8) + 4 * lists * dim


def pays_on_gpu(n: int, dim: int, queries: int) -> bool:
    """Say whether so many queries, one after the other, are worth a copy of `n` vectors on a GPU.

    Exact search is compared in both places; on the CPU, lists are faster at the price of recall.
    The figures are round: on the CPU a core reads 20 GB/s, on the GPU 1.5 TB/s after a millisecond;
    copying takes 1.5 s and 10 GB/s. It must save five times what it costs, as it takes memory too.
    So one query never pays, and a thousand do from about 170,000 vectors of 512 on.
    """
    size = 2 * n * dim
    saved_s = queries * (size / 20e9 - size / 1.5e12 - 1e-3)
    return saved_s >= 5 * (1.5 + size / 10e9)


def gpus() -> list[str]:
    """Return the names of all GPUs that FAISS can use, such as `cuda:0`."""
    return [f"cuda:{number}" for number in range(faiss.get_num_gpus())]


class Devices:
    """GPUs, and FAISS's indexes on them; all methods are the owner thread's.

    Attributes:
        names: such as `cuda:0`.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        """Name the GPUs; all of them if not given.

        Raises:
            ValueError: there are none, or not these.
        """
        there = gpus()
        self.names = list(there if names is None else names)
        if not self.names or not set(self.names) <= set(there):
            wanted = ", ".join(self.names) or "a GPU"
            raise ValueError(f"{wanted} is not there; FAISS sees {', '.join(there) or 'no GPU'}")

    def free_bytes(self) -> int | None:
        """Return what may be taken on all of them; None where the driver does not say."""
        free = [_free_bytes(_number(name)) for name in self.names]
        if None in free:
            return None
        least = min(one for one in free if one is not None)
        return len(free) * max(0, int(USABLE * least) - WORKSPACE)

    def flat(self, n: int, dim: int, rows: Callable[[int, int], NDArray[np.float32]]) -> Any:  # noqa: ANN401
        """Return an index of `n` rows in half precision, in pieces, shared out to the GPUs.

        Args:
            n: how many.
            dim: their length.
            rows: called with `start` and `stop`, returns `float32[stop - start, dim]`.
        """
        share = -(-n // len(self.names))
        # One thread for each GPU, none for the pieces: they share the GPU's workspace.
        whole = faiss.IndexShards(dim, len(self.names) > 1, True)
        for name, first in zip(self.names, range(0, n, share), strict=False):
            part, resources = faiss.IndexShards(dim, False, True), self._resources()
            last = min(first + share, n)
            pieces = -(-(last - first) * 2 * dim // PIECE_BYTES)
            size = -(-(last - first) // pieces)
            for start in range(first, last, size):
                piece, stop = self._piece(name, dim, resources), min(start + size, last)
                for at in range(start, stop, max(1, BLOCK // dim)):
                    piece.add(rows(at, min(at + max(1, BLOCK // dim), stop)))
                part.add_shard(piece)
            whole.add_shard(part)
        return whole

    def lists(self, lists: Any) -> Any:  # noqa: ANN401
        """Return a copy of an `IndexIVFScalarQuantizer`, its rows shared out to the GPUs."""
        count = len(self.names)
        whole = faiss.IndexShards(lists.d, count > 1, False)
        # One GPU after the other: FAISS's own loop runs in threads that no error may leave, so
        # that running out of memory there ends the process.
        for i, name in enumerate(self.names):
            some = lists
            if count > 1:
                some = faiss.IndexIVFScalarQuantizer(
                    lists.quantizer,
                    lists.d,
                    lists.nlist,
                    lists.sq.qtype,
                    lists.metric_type,
                    lists.by_residual,
                )
                some.sq, some.is_trained = lists.sq, True
                lists.copy_subset_to(some, faiss.InvertedLists.SUBSET_TYPE_ID_MOD, count, i)
            whole.add_shard(self._lists(name, some, self._resources()))
        return whole

    def _resources(self) -> Any:  # noqa: ANN401
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(WORKSPACE)
        return resources

    def _piece(self, name: str, dim: int, resources: Any) -> Any:  # noqa: ANN401
        config = faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16, config.use_cuvs = _number(name), True, False
        return faiss.GpuIndexFlatIP(resources, dim, config)

    def _lists(self, name: str, lists: Any, resources: Any) -> Any:  # noqa: ANN401
        options = faiss.GpuClonerOptions()
        options.use_cuvs = False
        return faiss.index_cpu_to_gpu(resources, _number(name), lists, options)


def _number(name: str) -> int:
    return int(name.removeprefix("cuda:"))


def _free_bytes(number: int) -> int | None:
    """Ask the driver, as FAISS does not tell."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, context, nothing = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    driver.cuCtxPushCurrent_v2(context)
    failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    driver.cuCtxPopCurrent_v2(ctypes.byref(nothing))
    # The context is kept: FAISS is about to use it.
    return None if failed else free.value
