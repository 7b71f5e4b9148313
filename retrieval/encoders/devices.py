"""Whether models of torch would run on a GPU, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

__all__ = ["gpu_is_used"]


@cache
def gpu_is_used() -> bool:
    """Tell whether torch is built for a GPU and the driver shows one (`CUDA_VISIBLE_DEVICES`)."""
    return _torch_has_gpu_build() and _devices_of_driver() > 0


def _torch_has_gpu_build() -> bool:
    # torch takes seconds to import; what it was built for also stands in a small file.
    try:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return False
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(r"^(cuda|hip)\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None


def _devices_of_driver() -> int:
    """Return how many GPUs the CUDA or ROCm driver shows; 0 without a driver."""
    cuda = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    for library, start, count in (
        (cuda, "cuInit", "cuDeviceGetCount"),
        ("libamdhip64.so", "hipInit", "hipGetDeviceCount"),
    ):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        found = ctypes.c_int(0)
        if getattr(driver, start)(0) == 0 and getattr(driver, count)(ctypes.byref(found)) == 0:
            return found.value
    return 0
