"""From a trained `DualEncoder` to the folder that `--model` takes.

The folder holds the weights to train further (`model.json`, `model.safetensors`) and the same
model as ONNX graphs (`encoder.json`), which run without torch.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as save_tensors

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.files import hashes, put, put_json, sync
from mmsearch.retrieval.encoders.folder import describe
from mmsearch.retrieval.encoders.onnx_export import at_rest, write_encoder
from mmsearch.retrieval.schema import Quantize

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["put_whole", "refuse_foreign", "save_model"]

OWN_FILES = frozenset(
    {
        "encoder.json",
        "image.onnx",
        "model.json",
        "model.safetensors",
        "text.onnx",
        "tokenizer.json",
    }
)


def save_model(
    model: DualEncoder,
    folder: Path,
    *,
    extra: dict[str, Any] | None = None,
    quantize: Quantize = Quantize.NONE,
) -> None:
    """Write a model; the folder appears whole or not at all, and replaces a former model.

    Files of others in a folder that held a model are kept.

    Args:
        model: adapters (LoRA) are merged already; its mode and device stay as they are.
        folder: where to; its parent is made if need be.
        extra: anything JSON, kept in `model.json`: how the model was trained.
        quantize: how the ONNX files store their weights.

    Raises:
        ModelError: `folder` holds something else, the model is too large for ONNX, or the ONNX
            files do not answer as the model does.
        OSError: the disk is full or read-only.
    """
    refuse_foreign(folder)
    put_whole(folder, OWN_FILES, lambda part: _write(model, part, extra or {}, Quantize(quantize)))


def put_whole(folder: Path, own_files: Collection[str], write: Callable[[Path], None]) -> None:
    """Make a folder that appears whole or not at all, in the place of a former one.

    What a process left that was killed at this is cleared up: no two write one model at a time.

    Args:
        folder: where to; its parent is made if need be.
        own_files: names that are not kept of a former folder.
        write: fills the folder it is given.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(folder, own_files)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        write(part)
        sync(part)
        _replace(folder, part, own_files)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(model: DualEncoder, part: Path, extra: dict[str, Any], quantize: Quantize) -> None:
    with at_rest(model):
        state = {
            name: tensor.cpu().contiguous().clone() for name, tensor in model.state_dict().items()
        }
        put(part / "model.safetensors", save_tensors(state))
        write_encoder(model, part, quantize)
    put_json(
        part / "model.json",
        {
            **describe(model),
            "sha256": hashes(part, ("model.safetensors", "tokenizer.json")),
            "extra": extra,
        },
    )


def refuse_foreign(folder: Path, marks: Collection[str] = ("model.json", "encoder.json")) -> None:
    """Raise `ModelError` where a model cannot take the place of what is at `folder`.

    Args:
        folder: where to.
        marks: names of which a folder has one that may be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ModelError(f"{folder} is no folder. Give another place for the model.")
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if names and not names & set(marks):
            raise ModelError(
                f"{folder} holds other files, and no model that could be replaced. Give a new or "
                "empty folder."
            )


def _replace(folder: Path, part: Path, own_files: Collection[str]) -> None:
    if not folder.exists():
        part.rename(folder)
    else:
        former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
        folder.rename(former)
        part.rename(folder)
        _take_over(former, folder, own_files)
    sync(folder.parent)


def _take_over(former: Path, folder: Path, own_files: Collection[str]) -> None:
    """Bring the files of others from where a model was to where it is now."""
    for path in former.iterdir():
        if path.name not in own_files:
            path.rename(folder / path.name)
    shutil.rmtree(former)


def _clear_up(folder: Path, own_files: Collection[str]) -> None:
    """Finish or undo what a process was at with this folder when it was killed."""
    left = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.(part|former)")
    for path in list(folder.parent.iterdir()):
        named = left.fullmatch(path.name)
        if named is None:
            continue
        if named[1] == "part":
            shutil.rmtree(path, ignore_errors=True)
        elif folder.exists():
            _take_over(path, folder, own_files)
        else:
            path.rename(folder)
