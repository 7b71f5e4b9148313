"""What rclip and clip-retrieval make of the folder of `tests/torture.py`, run end to end.

No weights are downloaded: both get random ones, as in `bench_peers.py`, which tells as well what is
read, what stops a run, and whether a picture is seen the right way round: of all references and the
eight orientations of the scene, embedded by the same program, its vector must be nearest to the one
it shows. What does not end well is run once more without what stops both: folders that are links to
each other, and folders too deep for any path. `mmsearch index` (its bundled model) is held to the
same; its tests demand more.

    python -m venv PEER && PEER/bin/pip install rclip==3.3.0
    python -m venv OTHER && OTHER/bin/pip install clip-retrieval==2.45.0 "setuptools<81"

usage: python bench_torture.py [--rclip PEER/bin/python] [--clip-retrieval OTHER/bin/python]
           [--seconds 300]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
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
        table = pyarrow.parquet.read_table(out / "metadata" / f"metadata_{number}.parquet")
        paths = [os.path.relpath(path, photos) for path in table["image_path"].to_pylist()]
        found |= dict(zip(paths, np.load(file).astype(np.float32), strict=True))
    return found


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def judged(found: Vectors, references: Vectors, names: dict[str, str], kinds: list[Kind]) -> Any:
    """Count what a program did with every kind."""
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
    return {
        "pictures": len(good),
        "indexed": sum(kind.path in found for kind in good),
        "seen as something else": len(wrong),
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


STOPPERS = ("files/loop", "files/abyss")


def both_ways(run_on: Any, folder: Path, plain: Path, names: Any, kinds: list[Kind]) -> Any:
    """Have a program index the folder, and again without what stops programs if it does not end.

    Args:
        run_on: takes a folder and a name; returns how it ended, and the vectors.
    """
    _, references = run_on(plain, "shown")
    ended, found = run_on(folder, "all")
    told = ended | judged(found, references, names, kinds)
    if ended["ended"] == "exit code 0":
        return told
    aside = folder.parent / "set aside"
    aside.mkdir()
    for path in STOPPERS:
        (folder / path).rename(aside / Path(path).name)
    ended, found = run_on(folder, "without")
    for path in STOPPERS:
        (aside / Path(path).name).rename(folder / path)
    aside.rmdir()
    rest = [kind for kind in kinds if not kind.path.startswith(STOPPERS)]
    return told | {"without what stops both": ended | judged(found, references, names, rest)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rclip", type=Path)
    parser.add_argument("--clip-retrieval", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        here = Path(temporary)
        folder, plain = here / "torture", here / "shown"
        kinds, figures["left out"] = torture.make_folder(folder)
        names = shown(plain)

        command = [str(Path(sys.executable).with_name("mmsearch")), "index"]
        ended = run([*command, str(folder)], options.seconds)
        run([*command, str(plain)], options.seconds)
        found = vectors_of_mmsearch(folder), vectors_of_mmsearch(plain)
        figures["mmsearch"] = ended | judged(*found, names, kinds)

        if options.rclip:
            python, weights = options.rclip.absolute(), here / "b32-256.pt"
            random_checkpoint(RCLIP_MODEL, weights)
            rclip_data(weights, here / "rclip")
            program = [str(python), "-m", "rclip", "a dog", "--top", "1"]

            def rclip(photos: Path, name: str) -> tuple[dict[str, Any], Vectors]:
                data = here / f"rclip {name}"
                data.mkdir()
                for made in (here / "rclip").iterdir():
                    (data / made.name).symlink_to(made)
                ended = run(program, options.seconds, PWD=str(photos), RCLIP_DATADIR=str(data))
                return ended, vectors_of_rclip(photos, data)

            figures["rclip"] = {"version": version_of(python, "rclip")}
            figures["rclip"] |= both_ways(rclip, folder, plain, names, kinds)

        if options.clip_retrieval:
            python, weights = options.clip_retrieval.absolute(), here / "b32.pt"
            random_checkpoint(MODEL, weights)

            def clip_retrieval(photos: Path, name: str) -> tuple[dict[str, Any], Vectors]:
                out = here / f"clip-retrieval {name}"
                model = f"open_clip:{MODEL}/{weights}"
                arguments = (str(photos), str(out), model)
                ended = run([str(python), "-c", CLIP_RETRIEVAL, *arguments], options.seconds)
                return ended, vectors_of_clip_retrieval(photos, out)

            figures["clip-retrieval"] = {"version": version_of(python, "clip-retrieval")}
            figures["clip-retrieval"] |= both_ways(clip_retrieval, folder, plain, names, kinds)
    write_report("torture", figures)


if __name__ == "__main__":
    main()
