"""Where trainable models come from: one name for each source, resolved when it is asked for.

    compact                                   the bundled encoder
    open_clip:MODEL[/PRETRAINED]              open_clip's own names; no PRETRAINED: random weights
    open_clip:local-dir:PATH                  a folder with open_clip_config.json and weights
    hf:NAME_OR_PATH                           CLIP, SigLIP, SigLIP 2 or ALIGN of transformers
    timm:IMAGE_MODEL+hf:TEXT_FOLDER           a model described by its parts; also +open_clip:MODEL
    FILE.json                                 the same, in more words
    FOLDER                                    what training wrote

Nothing here imports torch until a model is opened.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder, Towers

__all__ = ["absolute", "build_towers", "is_source", "load_dual_encoder", "reading"]

_MODULES = {
    "compact": "mmsearch.retrieval.encoders.compact_towers",
    "open_clip": "mmsearch.retrieval.encoders.open_clip",
    "hf": "mmsearch.retrieval.encoders.huggingface",
    "timm": "mmsearch.retrieval.encoders.described",
    "described": "mmsearch.retrieval.encoders.described",
    "folder": "mmsearch.retrieval.encoders.folder",
}
"""Kind to module; each has `load(rest, captions) -> DualEncoder` and all but `folder` have
`build(architecture) -> Towers`."""

_NAMED = ("open_clip", "hf", "timm")

_FORMS = (
    "'compact', 'open_clip:MODEL/PRETRAINED', 'open_clip:local-dir:PATH', 'hf:NAME_OR_PATH', "
    "'timm:IMAGE_MODEL+hf:TEXT_FOLDER', a description ending in .json, or the folder of a model "
    "that mmsearch trained"
)


def is_source(name: str) -> bool:
    """Tell whether `name` has the form of a named source, such as `hf:NAME`."""
    return name.partition(":")[0] in _NAMED and ":" in name


def absolute(source: str) -> str:
    """Return a named source that means the same in any working directory."""
    kind, _, rest = source.partition(":")
    prefix = "local-dir:" if rest.startswith("local-dir:") else ""
    path = Path(os.path.expanduser(rest.removeprefix(prefix)))  # noqa: PTH111
    if kind in {"hf", "open_clip"} and (prefix or kind == "hf") and path.is_dir():
        return f"{kind}:{prefix}{path.absolute()}"
    return source


def load_dual_encoder(source: str | Path, *, captions: Sequence[str] | None = None) -> DualEncoder:
    """Return the model called `source`, on the CPU, in evaluation mode, nothing locked.

    Args:
        source: one of the forms this module's text lists.
        captions: what a new vocabulary is made from, where a description leaves it open.

    Raises:
        ModelError: there is no such model, it cannot be had, or its files are damaged or altered.
        MissingExtra: a package that it needs is not installed.
    """
    kind, rest = _parse(str(source))
    module = _module(kind)
    model: DualEncoder = module.load(rest, captions)
    return model.eval()


def build_towers(architecture: dict[str, Any]) -> Towers:
    """Return towers with random weights for what `DualEncoder.architecture` says.

    Raises:
        ModelError: this version knows no such architecture.
        MissingExtra: a package that it needs is not installed.
    """
    kind = architecture.get("kind")
    if kind not in _MODULES or kind == "folder":
        raise ModelError(
            f"The architecture is of the kind {kind!r}, which this version of mmsearch does not "
            "know. Run: pip install --upgrade mmsearch"
        )
    build: Callable[[dict[str, Any]], Towers] = _module(kind).build
    return build(architecture)


@contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turn the errors of the model libraries into one that says what was tried.

    Args:
        what: the source, as the user gave it.
        advice: what to do, a sentence.
    """
    from safetensors import SafetensorError

    try:
        yield
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra(error.name or str(error), "models") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The model {what} cannot be opened ({type(error).__name__}: {reason}). {advice}"
        ) from error


def _parse(source: str) -> tuple[str, str]:
    kind, colon, rest = source.partition(":")
    if colon and kind in _NAMED and rest:
        return kind, rest
    if source == "compact":
        return "compact", ""
    path = Path(os.path.expanduser(source))  # noqa: PTH111
    if path.suffix == ".json" and path.is_file():
        return "described", str(path)
    if path.is_dir():
        return "folder", str(path)
    raise ModelError(f"There is no model '{source}'. Give {_FORMS}.")


def _module(kind: str) -> Any:  # noqa: ANN401
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "models")
    return importlib.import_module(_MODULES[kind])
