"""Where trainable models come from: one name for each source, resolved when it is asked for.

    compact                                   the bundled encoder
    open_clip:MODEL[/PRETRAINED]              open_clip's own names; no PRETRAINED: random weights
    open_clip:local-dir:PATH                  a folder with open_clip_config.json and weights
    hf:NAME_OR_PATH                           CLIP, SigLIP, SigLIP 2 or ALIGN of transformers
    timm:IMAGE_MODEL+hf:TEXT_FOLDER           a model described by its parts; also +open_clip:MODEL
    FILE.json                                 the same, in more words
    FOLDER                                    what training wrote

As an encoder, `open_clip:` and `hf:` may follow `int8:`, which stores the weights as bytes, and any
of them `tiles:`, which shows long pictures to it in parts.

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
from mmsearch.retrieval.offline import tell_model_libraries
from mmsearch.retrieval.schema import Quantize

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder, Towers

__all__ = [
    "TILES",
    "absolute",
    "build_towers",
    "is_source",
    "load_dual_encoder",
    "local_path",
    "reading",
    "split_quantize",
]

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

_UNREADABLE = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What the model libraries raise for files that they do not understand."""

TILES = "tiles:"

_INT8, _LOCAL, _HUB = "int8:", "local-dir:", "hf-hub:"

_FORMS = (
    "'compact', 'open_clip:MODEL/PRETRAINED', 'open_clip:local-dir:PATH', 'hf:NAME_OR_PATH', "
    "'timm:IMAGE_MODEL+hf:TEXT_FOLDER', a description ending in .json, or the folder of a model "
    "that mmsearch trained"
)


def is_source(name: str) -> bool:
    """Tell whether `name` has the form of a named source, such as `hf:NAME`."""
    kind, colon, _ = split_quantize(name)[1].partition(":")
    return kind in _NAMED and bool(colon)


def split_quantize(source: str) -> tuple[Quantize, str]:
    """Return how a source's weights are stored, and the source itself."""
    whole = source.removeprefix(_INT8)
    return (Quantize.NONE if whole == source else Quantize.INT8), whole


def absolute(source: str) -> str:
    """Return a named source that means the same in any working directory."""
    path = local_path(source)
    if path is None:
        return source
    quantize, whole = split_quantize(source)
    kind, _, rest = whole.partition(":")
    if rest.startswith(_LOCAL):
        kind += f":{_LOCAL.removesuffix(':')}"
    elif kind == "open_clip":
        return source.removesuffix(rest) + f"{rest.partition('/')[0]}/{path.absolute()}"
    return f"{_INT8 if quantize is Quantize.INT8 else ''}{kind}:{path.absolute()}"


def local_path(source: str) -> Path | None:
    """Return the folder or file that a named source's weights lie in; `None`: in a model hub."""
    kind, _, rest = split_quantize(source)[1].partition(":")
    if kind == "hf" or (kind == "open_clip" and rest.startswith(_LOCAL)):
        path = Path(os.path.expanduser(rest.removeprefix(_LOCAL)))  # noqa: PTH111
        return path if path.is_dir() else None
    file = rest.partition("/")[2] if kind == "open_clip" and not rest.startswith(_HUB) else ""
    return Path(file) if file and Path(file).is_file() else None


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
    except (*_UNREADABLE, SafetensorError) as error:
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
    tell_model_libraries()
    return importlib.import_module(_MODULES[kind])
