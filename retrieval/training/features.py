"""What the frozen towers say about photos and captions, computed once and kept on disk.

Both towers stay as they are while the heads are trained, so every photo and every caption passes
through them once; a training epoch then costs seconds.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import ImageOps

from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.preprocess import ImagePreprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PREPROCESS",
    "Pair",
    "cached",
    "image_features",
    "image_trunk",
    "read_class_names",
    "read_pairs",
    "read_paths",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

PREPROCESS = ImagePreprocess(size=224)
"""The transform the encoder is trained and shipped with."""

POOLED = {"t191": 1280, "t158": 768, "t104": 384}
"""Tensors of the backbone that are averaged over the picture, in order, and their channels.

`t191` feeds the classifier; `t158` (14 by 14 cells) and `t104` (28 by 28 cells) still know
colours and textures, which the classifier has no use for.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A photo, one text for it, and what sort of text it is."""

    path: str
    caption: str
    kind: str


def read_pairs(path: Path) -> list[Pair]:
    """Read a file with the columns `path`, `caption` and `kind`, separated by tabs, unquoted."""
    return [Pair(row["path"], row["caption"], row["kind"]) for row in _rows(path)]


def read_paths(path: Path) -> list[str]:
    """Read the column `path` of a file whose columns are separated by tabs, unquoted."""
    return [row["path"] for row in _rows(path)]


def read_class_names(path: Path) -> list[str]:
    """Read one class a line, the background first; its most usual name stands before the comma."""
    return [line.split(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]


def image_trunk(backbone: Path) -> onnx.ModelProto:
    """Return the frozen image tower as a graph from bytes to pooled features.

    Input `pixels` is uint8[n, 224, 224, 3]; outputs are `features` float32[n, 2432] (see `POOLED`)
    and `logits` float32[n, 1001].
    """
    model = onnx.load(backbone)
    graph = model.graph
    constants = {
        "pixel_middle": np.float32(128.0),
        "pixel_scale": np.float32(0.007874016),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    prepare = [
        helper.make_node("Cast", ["pixels"], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels_float", "pixel_middle"], ["pixels_centred"]),
        helper.make_node("Mul", ["pixels_centred", "pixel_scale"], ["pixels_scaled"]),
        helper.make_node("Transpose", ["pixels_scaled"], ["x"], perm=[0, 3, 1, 2]),
    ]
    pooling = []
    parts = []
    for tensor in POOLED:
        # Opset 17 still takes the axes of a mean as an attribute.
        pooling.append(
            helper.make_node("ReduceMean", [tensor], [f"{tensor}_mean"], axes=[2, 3], keepdims=0)
        )
        parts.append(f"{tensor}_mean")
    pooling.append(helper.make_node("Concat", parts, ["features"], axis=1))
    for node in graph.node:
        node.output[:] = ["unused" if name == "features" else name for name in node.output]
    nodes = [*prepare, *(n for n in graph.node if "unused" not in n.output), *pooling]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    size = PREPROCESS.size
    graph.input.append(
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3])
    )
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None])
        for name in ("features", "logits")
    )
    return model


def image_features(
    paths: Sequence[Path], trunk: onnx.ModelProto, *, view: int = 0, batch: int = 32
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return `(float16[n, features], float16[n, 1001])`: pooled features and teacher's logits.

    Args:
        paths: the photos.
        trunk: what `image_trunk` returned.
        view: 0 is the photo as it is, 1 its mirror image.
        batch: photos that pass through the tower at once.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(
        trunk.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    features, logits = [], []
    with ThreadPoolExecutor(2) as pool:
        for number, rows in enumerate(_batches(paths, batch)):
            pixels = np.stack(list(pool.map(lambda path: _pixels(path, view), rows)))
            found = session.run(["features", "logits"], {"pixels": pixels})
            features.append(found[0].astype(np.float16))
            logits.append(found[1].astype(np.float16))
            if number % 50 == 49:
                logger.info("view %d: %d of %d photos", view, (number + 1) * batch, len(paths))
    return np.concatenate(features), np.concatenate(logits)


def cached(
    folder: Path | None, name: str, key: object, compute: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return what `compute` returns, from `folder` where an equal `key` was seen before."""
    if folder is None:
        return compute()
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, compute(), allow_pickle=False)
        part.rename(path)
    loaded: NDArray[Any] = np.load(path, allow_pickle=False)
    return loaded


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pixels(path: Path, view: int) -> NDArray[np.uint8]:
    image = load_rgb(path, at_least=PREPROCESS.decode_size)
    return PREPROCESS(ImageOps.mirror(image) if view else image)
