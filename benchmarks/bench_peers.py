"""How fast `mmsearch index` is beside other programs with the very same network, on the CPU.

The same photos and the same random weights go through `clip-retrieval inference` and `mmsearch
index` (ViT-B-32), and through `rclip` and `mmsearch index` (ViT-B-32-256, the one rclip has). Whole
commands are timed, in turn, and their own figures are told beside. That the first two embed alike
is checked, vector by vector. That `mmsearch` exports a model when it first meets it is timed by
itself: rclip downloads exported ones.

The others live in environments of their own, and none of them asks a model hub:

    python -m venv PEER && PEER/bin/pip install clip-retrieval "setuptools<81"
    python -m venv OTHER && OTHER/bin/pip install rclip

usage: python bench_peers.py PHOTOS [--n 1000] [--rounds 3]
           [--clip-retrieval PEER/bin/python] [--rclip OTHER/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report

from mmsearch.retrieval.library import Library

MODEL = "ViT-B-32"
RCLIP_MODEL = "ViT-B-32-256"
RCLIP_FOLDER = f"{RCLIP_MODEL}-datacomp_s34b_b86k"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def provide(sources: list[Path], folder: Path, n: int) -> None:
    """Copy `n` photos, no two with the same bytes: some programs embed a content once."""
    folder.mkdir()
    for i in range(n):
        # Behind its end, where no decoder looks.
        data = sources[i % len(sources)].read_bytes() + i.to_bytes(8, "big")
        (folder / f"{i:06}.jpg").write_bytes(data)


def random_checkpoint(name: str, path: Path) -> None:
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(name, pretrained=None).state_dict(), path)


def rclip_data(checkpoint: Path, folder: Path) -> None:
    """Lay out what rclip keeps in its data directory: two ONNX towers and a vocabulary."""
    import open_clip
    import torch

    class Tower(torch.nn.Module):
        def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.model = model
            self.encode = encode

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.encode(values)

    model = open_clip.create_model(RCLIP_MODEL, pretrained=str(checkpoint)).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    (folder / RCLIP_FOLDER).mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(Path(open_clip.__file__).with_name(vocabulary), folder / "tokenizer" / vocabulary)
    side = 256
    for name, encode, example in (
        ("visual", model.encode_image, torch.zeros(2, 3, side, side)),
        ("textual", model.encode_text, torch.zeros(2, 77, dtype=torch.long)),
    ):
        torch.onnx.export(
            Tower(encode),
            (example,),
            str(folder / RCLIP_FOLDER / f"{name}.onnx"),
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )


def timed(command: list[str], *, cwd: Path | None = None, **environment: str) -> tuple[float, str]:
    """Run a whole command; return its seconds and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


def first_use(photos: Path, name: str, checkpoint: Path) -> float:
    """Have a model exported by indexing one photo; return the seconds, paid once for a model."""
    alone = photos.parent / f"one for {name}"
    alone.mkdir()
    shutil.copy(min(photos.glob("*.jpg")), alone)
    return round(1 / run_mmsearch(alone, name, checkpoint, 1)["whole"], 1)


def run_mmsearch(photos: Path, name: str, checkpoint: Path, n: int) -> dict[str, float]:
    shutil.rmtree(photos / ".mmsearch", ignore_errors=True)
    command = str(Path(sys.executable).with_name("mmsearch"))
    model = f"open_clip:{name}/{checkpoint}"
    seconds, printed = timed([command, "index", str(photos), "--model", model, "--json"])
    report = json.loads(printed)
    assert report["embedded"] == n, report
    return {"whole": n / seconds, "own": report["images_per_second"]}


def run_clip_retrieval(python: Path, photos: Path, checkpoint: Path, out: Path) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    seconds, _ = timed(
        [
            str(python.with_name("clip-retrieval")),
            "inference",
            *("--input_dataset", str(photos)),
            *("--output_folder", str(out)),
            *("--input_format", "files"),
            # Its names of captions keep their endings, and so find no picture.
            *("--enable_text", "False"),
            *("--clip_model", f"open_clip:{MODEL}/{checkpoint}"),
            *("--batch_size", "32"),
            *("--num_prepro_workers", str(os.cpu_count())),
            *("--write_batch_size", "100000"),
        ]
    )
    stats = json.loads((out / "stats" / "0.json").read_text())
    n = len(np.load(out / "img_emb" / "img_emb_0.npy"))
    return {"whole": n / seconds, "own": stats["sample_count"] / stats["total_duration"]}


def run_rclip(python: Path, photos: Path, data: Path, n: int) -> dict[str, float]:
    # Contents that its database knows are not embedded again.
    for file in data.glob("*.sqlite*"):
        file.unlink()
    command = [str(python.with_name("rclip")), "a dog", "--top", "1"]
    seconds, _ = timed(command, cwd=photos, RCLIP_DATADIR=str(data))
    return {"whole": n / seconds}


def agreement(photos: Path, out: Path) -> dict[str, float]:
    """Return the cosine of both programs' vectors of the same pictures."""
    import pyarrow.parquet

    theirs = np.load(out / "img_emb" / "img_emb_0.npy").astype(np.float32)
    table = pyarrow.parquet.read_table(out / "metadata" / "metadata_0.parquet")
    names = [Path(path).name for path in table["image_path"].to_pylist()]
    library = Library.open(photos)
    try:
        encoder_id, spec = library.active_encoder(library.catalog.library())
        ids, ours = library.catalog.file_vectors(encoder_id, spec.dim)
        hits = library.catalog.file_hits([(int(id_), 0.0) for id_ in ids])
    finally:
        library.close()
    row = {hit.path: i for i, hit in enumerate(hits)}
    mine = ours.astype(np.float32)[[row[name] for name in names]]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    mine /= np.linalg.norm(mine, axis=1, keepdims=True)
    cosines = (mine * theirs).sum(axis=1)
    return {"mean": round(float(cosines.mean()), 5), "min": round(float(cosines.min()), 5)}


def compared(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Summarise rounds of (another program, mmsearch)."""
    ratios = [mine["whole"] / theirs["whole"] for theirs, mine in rounds]

    def middle(side: int) -> dict[str, float]:
        return {
            key: round(statistics.median(pair[side][key] for pair in rounds), 2)
            for key in rounds[0][side]
        }

    return {
        "pictures_per_second": {"peer": middle(0), "mmsearch": middle(1)},
        "mmsearch_over_peer": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip-retrieval", type=Path, help="the Python of its environment")
    parser.add_argument("--rclip", type=Path, help="the Python of its environment")
    options = parser.parse_args()
    sources = sorted(options.photos.rglob("*.jpg"))
    figures: dict[str, Any] = {"pictures": options.n, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos, out = folder / "photos", folder / "out"
        provide(sources, photos, options.n)
        if options.clip_retrieval:
            python = options.clip_retrieval.absolute()
            weights = folder / "b32.pt"
            random_checkpoint(MODEL, weights)
            exported = first_use(photos, MODEL, weights)
            rounds = []
            for _ in range(options.rounds):
                theirs = run_clip_retrieval(python, photos, weights, out)
                rounds.append((theirs, run_mmsearch(photos, MODEL, weights, options.n)))
            figures["clip_retrieval"] = compared(rounds) | {
                "mmsearch_first_use_seconds": exported,
                "version": version_of(python, "clip-retrieval"),
                "cosine_of_vectors": agreement(photos, out),
            }
        if options.rclip:
            python = options.rclip.absolute()
            weights, data = folder / "b32-256.pt", folder / "rclip"
            random_checkpoint(RCLIP_MODEL, weights)
            rclip_data(weights, data)
            exported = first_use(photos, RCLIP_MODEL, weights)
            rounds = []
            for _ in range(options.rounds):
                shutil.rmtree(photos / ".mmsearch", ignore_errors=True)
                theirs = run_rclip(python, photos, data, options.n)
                rounds.append((theirs, run_mmsearch(photos, RCLIP_MODEL, weights, options.n)))
            figures["rclip"] = compared(rounds) | {
                "mmsearch_first_use_seconds": exported,
                "version": version_of(python, "rclip"),
            }
    write_report("peers", figures, seed=0)


def version_of(python: Path, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
