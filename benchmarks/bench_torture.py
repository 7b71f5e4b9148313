"""What rclip and clip-retrieval make of the folder of `tests/torture.py`, run end to end.

No weights are downloaded: both get random ones, as in `bench_peers.py`, which tells as well what is
read, what stops a run, and whether a picture is seen the right way round: of all references and the
eight orientations of the scene, embedded by the same program, its vector must be nearest to the one
it shows. Where a run does not end well, each suspect is tried by itself beside three sound
pictures, and the folder once more without those that lose it the sound ones. `mmsearch
index` (its bundled model) is held to the same; its tests demand more.

    python -m venv PEER && PEER/bin/pip install rclip==3.3.0
    python -m venv OTHER && OTHER/bin/pip install clip-retrieval==2.45.0 "setuptools<81"

usage: python bench_torture.py [--rclip PEER/bin/python] [--clip-retrieval OTHER/bin/python]
           [--seconds 300] [--seconds-each 60]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_peers import MODEL, OFFLINE, RCLIP_MODEL, random_checkpoint, rclip_data, version_of
from numpy.typing import NDArray
from report import write_report

sys.path.append(str(Path(__file__).parents[1]))
from tests import torture
from tests.torture import Kind, Outcome

Vectors = dict[str, NDArray[np.float32]]

CLIP_RETRIEVAL = """
import sys
from clip_retrieval.clip_inference.main import main
photos, out, model = sys.argv[1:]
main(photos, out, input_format="files", enable_text=False, batch_size=32, clip_model=model,
     num_prepro_workers=2, write_batch_size=100000)
"""


def shown(folder: Path) -> dict[str, str]:
    """Put every reference, and the scene turned in every way, into a folder; return their names."""
    folder.mkdir()
    names = {}
    for number, (name, make) in enumerate(torture.REFERENCES.items()):
        make().save(folder / f"reference{number}.png")
        names[f"reference{number}.png"] = name
    for turn in range(2, 9):
        torture.turned(turn).save(folder / f"turned{turn}.png")
        names[f"turned{turn}.png"] = f"the scene turned as {turn}"
    return names


def run(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command; say how it ended."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | OFFLINE | environment,
            cwd=environment.get("PWD"),
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"ended": f"not within {seconds:g} s"}
    told = done.stderr.decode(errors="replace").strip().splitlines()
    ended: dict[str, Any] = {"ended": f"exit code {done.returncode}"}
    if done.returncode:
        ended["last words"] = told[-1][:300] if told else ""
    return ended


def vectors_of_mmsearch(photos: Path) -> Vectors:
    with closing(sqlite3.connect(photos / ".mmsearch" / "catalog.sqlite")) as connection:
        connection.text_factory = bytes
        rows = connection.execute(
            "SELECT path, vector FROM file JOIN file_vector ON file_vector.file_id = file.id"
        ).fetchall()
    return {os.fsdecode(path): np.frombuffer(row, "<f2").astype(np.float32) for path, row in rows}


def vectors_of_rclip(photos: Path, data: Path) -> Vectors:
    files = sorted(data.glob("*.sqlite*"))
    if not files:
        return {}
    with closing(sqlite3.connect(files[0])) as connection:
        connection.text_factory = bytes
        rows = connection.execute(
            "SELECT filepath, vector FROM images WHERE deleted IS NULL"
        ).fetchall()
    return {
        os.path.relpath(os.fsdecode(path), photos): np.frombuffer(row, "<f4") for path, row in rows
    }


def vectors_of_clip_retrieval(photos: Path, out: Path) -> Vectors:
    import pyarrow.parquet

    found: Vectors = {}
    for file in sorted((out / "img_emb").glob("*.npy")) if out.exists() else []:
        number = file.stem.rpartition("_")[2]
        metadata = out / "metadata" / f"metadata_{number}.parquet"
        if not metadata.exists():  # vectors without names: it ended in between
            continue
        table = pyarrow.parquet.read_table(metadata)
        paths = [os.path.relpath(path, photos) for path in table["image_path"].to_pylist()]
        found |= dict(zip(paths, np.load(file).astype(np.float32), strict=True))
    return found


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def judged(
    found: Vectors,
    references: Vectors,
    names: dict[str, str],
    folder: Folder,
    left_out: Sequence[str] = (),
) -> Any:
    """Count what a program did with every kind, but for those whose paths are left out."""
    kinds = [kind for kind in folder.kinds if not kind.path.startswith(tuple(left_out) or "\0")]
    keys = [name for name in names if name in references]
    table = np.stack([unit(references[name]) for name in keys]) if keys else None
    good = [kind for kind in kinds if kind.outcome in {Outcome.INDEXED, Outcome.DUPLICATE}]
    bad = [kind for kind in kinds if kind.outcome is Outcome.SKIPPED]
    wrong = []
    for kind in good:
        vector = found.get(kind.path)
        if vector is None or table is None or kind.outcome is Outcome.DUPLICATE:
            continue
        scores = table @ unit(vector)
        of = keys.index(next(key for key in keys if names[key] == kind.of))
        # Shades of one scene may tie within the noise of a lossy format.
        if scores[of] < scores.max() - 1e-3 or not np.isfinite(scores).all():
            wrong.append(kind.title)
    same: dict[bytes, set[str]] = {}
    for kind in good:
        if kind.outcome is Outcome.INDEXED and kind.path in found:
            same.setdefault(found[kind.path].tobytes(), set()).add(kind.of)
    return {
        "pictures": len(good),
        "indexed": sum(kind.path in found for kind in good),
        "seen as something else": len(wrong),
        "vectors that pictures of different things share": sum(len(of) > 1 for of in same.values()),
        "names that no file has": len(found.keys() - {kind.path for kind in folder.kinds}),
        "no pictures, or damaged": len(bad),
        "indexed all the same": sum(kind.path in found for kind in bad),
        "to be left alone": sum(kind.outcome is Outcome.IGNORED for kind in kinds),
        "indexed although to be left alone": sum(
            kind.path in found for kind in kinds if kind.outcome is Outcome.IGNORED
        ),
        "which were seen as something else": wrong,
        "which were indexed all the same": [kind.title for kind in bad if kind.path in found],
        "which were missed": [kind.title for kind in good if kind.path not in found],
    }


STOPPERS: dict[str, tuple[str, ...]] = {
    "folders that are links to each other": ("files/loop",),
    "a link to itself": ("files/circle.jpg", "beside/circle.txt"),
    "folders too deep for any path": ("files/abyss",),
    "names that are no UTF-8": (
        "names/\udcff\udcfe latin \udcfc.jpg",
        "names/\udcc0\udcaf overlong.jpg",
        "names/\udced\udca0\udc80 surrogate.jpg",
        "names/\udc9b31m raw C1.jpg",
    ),
    "1 × 30,000 pixels": ("sizes/1x30000.png",),
    "2 × 30,000 pixels, either way": ("sizes/2x30000.png", "sizes/30000x2.jpg"),
    "a PNG whose second half is zeros": ("damage/zeros.png",),
}
"""What may end a run, each to be tried by itself beside a few sound pictures."""

BESIDE = ("formats/plain.jpg", "formats/plain.png", "files/original.jpg")


class Folder:
    """The folder, of which parts can be taken away, and brought back."""

    def __init__(self, path: Path, kinds: list[Kind]) -> None:
        self.path, self.kinds = path, kinds
        self._aside = path.with_name("set aside")

    @contextmanager
    def without(self, paths: Iterable[str]) -> Iterator[Path]:
        """Take some paths away for a while; yield the folder without them."""
        gone = [path for path in paths if os.path.lexists(self.path / path)]
        for path in gone:
            (self._aside / path).parent.mkdir(parents=True, exist_ok=True)
            (self.path / path).rename(self._aside / path)
        try:
            yield self.path
        finally:
            for path in gone:
                (self._aside / path).rename(self.path / path)

    @contextmanager
    def only(self, paths: Iterable[str]) -> Iterator[Path]:
        """Move some paths to a folder of their own for a while; yield it."""
        small = self.path.with_name("small")
        for path in paths:
            if os.path.lexists(self.path / path):
                (small / path).parent.mkdir(parents=True, exist_ok=True)
                (self.path / path).rename(small / path)
        try:
            yield small
        finally:
            for path in paths:
                if os.path.lexists(small / path):
                    (small / path).rename(self.path / path)
            shutil.rmtree(small, ignore_errors=True)


def tried(run_on: Any, folder: Folder, plain: Path, names: Any, limits: tuple[float, float]) -> Any:
    """Have a program index the folder: whole, then without what is found to end it.

    Args:
        run_on: takes a folder, a name and seconds; returns how it ended, and the vectors.
        folder: the folder.
        plain: the references.
        names: what they are, by file.
        limits: seconds for a whole folder, and for a few pictures.
    """
    long, short = limits
    _, references = run_on(plain, "shown", long)
    ended, found = run_on(folder.path, "all", long)
    whole = ended | judged(found, references, names, folder)
    if ended["ended"] == "exit code 0":
        return {"whole folder": whole}
    stops: dict[str, Any] = {}
    for number, (title, paths) in enumerate(STOPPERS.items()):
        with folder.only([*BESIDE, *paths]) as small:
            ended, found = run_on(small, f"stopper {number}", short)
        # What is still at it may be slow only: what counts is what is stored of the others.
        if lost := sum(path not in found for path in BESIDE):
            stops[title] = ended | {"sound pictures lost": lost}
    left = [path for title in stops for path in STOPPERS[title]]
    with folder.without(left) as rest:
        ended, found = run_on(rest, "without", long)
    return {
        "whole folder": whole,
        "stopped by": stops,
        "without what stops it": ended | judged(found, references, names, folder, left),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rclip", type=Path)
    parser.add_argument("--clip-retrieval", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="for a whole folder")
    parser.add_argument("--seconds-each", type=float, default=60, help="for a few pictures")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        here = Path(temporary)
        folder, plain = here / "torture", here / "shown"
        kinds, figures["left out"] = torture.make_folder(folder)
        names = shown(plain)

        limits = options.seconds, options.seconds_each
        torture_folder = Folder(folder, kinds)
        command = [str(Path(sys.executable).with_name("mmsearch")), "index"]

        def mmsearch(photos: Path, _: str, seconds: float) -> tuple[dict[str, Any], Vectors]:
            ended = run([*command, str(photos)], seconds)
            found = vectors_of_mmsearch(photos)
            shutil.rmtree(photos / ".mmsearch")
            return ended, found

        figures["mmsearch"] = tried(mmsearch, torture_folder, plain, names, limits)
        write_report("torture", figures)

        if options.rclip:
            python, weights = options.rclip.absolute(), here / "b32-256.pt"
            random_checkpoint(RCLIP_MODEL, weights)
            rclip_data(weights, here / "rclip")
            program = [str(python), "-m", "rclip", "a dog", "--top", "1"]

            def rclip(photos: Path, name: str, seconds: float) -> tuple[dict[str, Any], Vectors]:
                data = here / f"rclip {name}"
                data.mkdir()
                for made in (here / "rclip").iterdir():
                    (data / made.name).symlink_to(made)
                ended = run(program, seconds, PWD=str(photos), RCLIP_DATADIR=str(data))
                return ended, vectors_of_rclip(photos, data)

            figures["rclip"] = {"version": version_of(python, "rclip")}
            figures["rclip"] |= tried(rclip, torture_folder, plain, names, limits)
            write_report("torture", figures)

        if options.clip_retrieval:
            python, weights = options.clip_retrieval.absolute(), here / "b32.pt"
            random_checkpoint(MODEL, weights)

            def clip_retrieval(
                photos: Path, name: str, seconds: float
            ) -> tuple[dict[str, Any], Vectors]:
                out = here / f"clip-retrieval {name}"
                model = f"open_clip:{MODEL}/{weights}"
                arguments = (str(photos), str(out), model)
                ended = run([str(python), "-c", CLIP_RETRIEVAL, *arguments], seconds)
                return ended, vectors_of_clip_retrieval(photos, out)

            figures["clip-retrieval"] = {"version": version_of(python, "clip-retrieval")}
            figures["clip-retrieval"] |= tried(clip_retrieval, torture_folder, plain, names, limits)
            write_report("torture", figures)


if __name__ == "__main__":
    main()
