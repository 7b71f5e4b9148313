"""Models of open_clip and transformers as ONNX folders in the user's cache.

A model is exported once, checked against torch, and then answers without torch, transformers or
open_clip being imported, with vectors that are interchangeable with torch's: the `EncoderSpec` is
the same. Where there is a GPU, torch embeds collections on it, and only questions come here.

    CACHE/onnx/NAME-SOURCE-STATE/   encoder.json, image.onnx, text.onnx, tokenizer.json
                                    export.json: source, spec, agreement with torch, versions

STATE is that of the source: names, sizes and times of a folder's files, or the hub's revision. An
altered checkpoint has another, so it is exported anew. A model that cannot be exported leaves an
`export.json` that says why; it is tried again with another version of mmsearch or torch.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch import __version__
from mmsearch.errors import ModelError, quoted
from mmsearch.retrieval.encoders.cache import file_name, put_folder, read_json, root
from mmsearch.retrieval.encoders.devices import gpu_is_used
from mmsearch.retrieval.encoders.onnx import OnnxEncoder
from mmsearch.retrieval.encoders.sources import local_path, split_quantize
from mmsearch.retrieval.schema import EncoderSpec, Quantize

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.base import Encoder

__all__ = ["Export", "exports", "find", "load", "refusal", "source_state", "store"]

FORMAT = 1

LEFT_BEHIND_SECONDS = 24 * 3600
"""Unfinished folders of processes that were killed are removed when they are older."""


@dataclass(frozen=True, slots=True)
class Export:
    """A folder in the cache.

    Attributes:
        folder: where it is.
        source: the model's name, with `int8:` where its weights are stored as bytes.
        facts: what `export.json` says.
    """

    folder: Path
    source: str
    facts: dict[str, Any]

    def open(self) -> OnnxEncoder:
        """Return the encoder; its towers are read when first used.

        Raises:
            ModelError: the folder is damaged.
        """
        advice = f"Delete the folder {quoted(self.folder)}: it is made again when it is needed."
        try:
            spec = EncoderSpec(**self.facts["spec"])
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"The export {self.folder} is damaged ({error!r}). {advice}"
            ) from error
        return OnnxEncoder(self.folder, location=self.source, spec=spec, advice=advice)


def load(source: str, *, asking: bool = False) -> Encoder:
    """Return the encoder of a named source: its export, made if need be, or torch on a GPU.

    Args:
        source: absolute, such as `hf:NAME` or `int8:open_clip:MODEL/PRETRAINED`.
        asking: no more than a few texts or pictures follow: not worth starting a GPU for.

    Raises:
        ModelError: the source cannot be opened, or its weights are random.
        MissingExtra: it was not exported yet, and the model's library is not installed.
    """
    quantize, whole = split_quantize(source)
    on_gpu = quantize is Quantize.NONE and not asking and gpu_is_used()
    if not on_gpu:
        found = find(source)
        if found is not None:
            return found.open()
    # Named in a text, not imported: what only asks must never load torch.
    module = importlib.import_module("mmsearch.retrieval.encoders.torch_encoder")
    encoder: Encoder = module.load(whole, quantize, export=not on_gpu)
    return encoder


def find(source: str) -> Export | None:
    """Return the export of a named source in its present state, if there is one."""
    for export in _of_source(source):
        if "spec" in export.facts and (export.folder / "encoder.json").is_file():
            return export
    return None


def refusal(source: str) -> str | None:
    """Return why a named source in its present state could not be exported, if it was tried."""
    for export in _of_source(source):
        if export.facts.get("versions") == _versions():
            return export.facts.get("refused")
    return None


def store(
    source: str, state: str | None, write: Callable[[Path], dict[str, Any]], **facts: object
) -> Export:
    """Add a folder to the cache; where another process did it meanwhile, return that one's.

    Args:
        source: the model's name.
        state: `source_state` of what was exported.
        write: fills the folder it is given and returns more facts.
        facts: anything JSON for `export.json`.

    Raises:
        OSError: the cache cannot be written to.
    """
    folder = _folders() / file_name(source, source, state or "")
    if "refused" in read_json(folder / "export.json"):
        shutil.rmtree(folder)
    written: dict[str, Any] = {}

    def fill(part: Path) -> None:
        written.update(
            format=FORMAT,
            source=source,
            state=state,
            created=time.time(),
            versions=_versions(),
            **facts,
        )
        written.update(write(part))
        text = json.dumps(written, indent=2) + "\n"
        (part / "export.json").write_text(text, encoding="utf-8")

    put_folder(folder, fill)
    _tidy(source, folder)
    return Export(folder, source, read_json(folder / "export.json"))


def exports() -> Iterator[Export]:
    """Yield everything in the cache that this version can use, refusals included."""
    return _read("*")


def source_state(source: str) -> str | None:
    """Return what changes when a source's weights do; `None` where that cannot be known here.

    The names, sizes and times of a folder's files, or of the one file; of a repository of the hub
    the revision that the hub's own cache took for the newest; "" for open_clip's tags, which never
    change.
    """
    path = local_path(source)
    if path is not None:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir())
        lines = [
            f"{file.name}\t{facts.st_size}\t{facts.st_mtime_ns}"
            for file in files
            if not file.name.startswith(".") and (facts := file.stat())
        ]
        return "\n".join(lines)
    kind, _, rest = split_quantize(source)[1].partition(":")
    if kind == "hf":
        repository = rest
    elif rest.startswith("hf-hub:"):
        repository = rest.removeprefix("hf-hub:")
    elif rest.startswith("local-dir:") or "//" in rest:
        return None  # It is gone; what was exported from it still answers.
    else:
        return ""
    reference = _hub_cache() / f"models--{repository.replace('/', '--')}" / "refs" / "main"
    try:
        return reference.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _of_source(source: str) -> list[Export]:
    """Return the exports of a source in its present state, the newest first."""
    state = source_state(source)
    found = [
        export
        for export in _read(file_name(source, source) + "-*")
        if export.source == source and (state is None or export.facts.get("state") == state)
    ]
    return sorted(found, key=lambda export: -float(export.facts.get("created", 0)))


def _read(pattern: str) -> Iterator[Export]:
    for path in sorted(_folders().glob(f"{pattern}/export.json")):
        facts = read_json(path)
        if not path.parent.name.startswith(".") and facts.get("format") == FORMAT:
            yield Export(path.parent, str(facts.get("source")), facts)


def _folders() -> Path:
    return root() / "onnx"


def _tidy(source: str, kept: Path) -> None:
    """Remove what the source was before it was altered, and what killed processes left."""
    for export in list(_read(file_name(source, source) + "-*")):
        if export.folder != kept and export.source == source:
            shutil.rmtree(export.folder, ignore_errors=True)
    for part in _folders().glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > LEFT_BEHIND_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            continue


def _versions() -> dict[str, str]:
    found = {"mmsearch": __version__}
    for package in ("torch", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hub_cache() -> Path:
    """Return where the hub's own library keeps what it downloaded, as its manual says."""
    environ = os.environ
    given = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expanduser(given))  # noqa: PTH111
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or os.path.join(caches, "huggingface")  # noqa: PTH118
    return Path(os.path.expanduser(home)) / "hub"  # noqa: PTH111
