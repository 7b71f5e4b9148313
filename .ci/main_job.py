"""Check a wheel, and run the main job with the `mmsearch` that was installed from it.

usage: python main_job.py WHEEL   (in an environment that holds that wheel and nothing else)
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw


def run(*arguments: str, code: int = 0) -> str:
    """Run mmsearch; end everything when it does not return `code`."""
    done = subprocess.run(["mmsearch", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != code:
        sys.exit(f"mmsearch {arguments}: exit {done.returncode}, not {code}\n{done.stderr}")
    return done.stdout


def check(fact: bool, what: str) -> None:
    """End everything where a fact does not hold."""
    if not fact:
        sys.exit(f"not so: {what}")


def draw(folder: Path) -> None:
    """Draw a few pictures that plain words describe."""
    folder.mkdir()
    beach = Image.new("RGB", (640, 480), (120, 190, 250))
    pen = ImageDraw.Draw(beach)
    pen.rectangle((0, 240, 640, 330), fill=(20, 90, 180))
    pen.rectangle((0, 330, 640, 480), fill=(230, 205, 150))
    beach.save(folder / "beach.jpg")
    night = Image.new("RGB", (640, 480), (3, 3, 12))
    ImageDraw.Draw(night).ellipse((400, 60, 480, 140), fill=(240, 240, 225))
    night.save(folder / "night.png")
    meadow = Image.new("RGB", (640, 480), (130, 200, 255))
    ImageDraw.Draw(meadow).rectangle((0, 220, 640, 480), fill=(60, 160, 40))
    meadow.save(folder / "meadow.webp")
    (folder / "night.txt").write_text("the moon in a dark sky\n")
    (folder / "broken.jpg").write_bytes((folder / "beach.jpg").read_bytes()[:-500])


names = zipfile.ZipFile(sys.argv[1]).namelist()
check(not any(name.split("/")[1] in {"tests", "benchmarks"} for name in names), "no tests inside")
check("mmsearch/py.typed" in names, "the wheel is typed")
page = {f"mmsearch/retrieval/web/{name}" for name in ("static/page.css", "templates/page.html")}
check(page <= set(names), "the page is inside")
check(importlib.util.find_spec("torch") is None, "the base install has no torch")

draw(Path("my photos"))
report = json.loads(run("index", "my photos", "--json"))
check(report["added"] == 3 and report["problems"] == 1 and report["captions"] == 1, str(report))
check(json.loads(run("index", "my photos", "--json"))["embedded"] == 0, "nothing is embedded twice")
found = json.loads(run("query", "the moon in the night sky", "--json"))
check(found["results"][0]["path"] == "night.png", str(found))
same = json.loads(run("query", "--image", "my photos/meadow.webp", "-k", "1", "--json"))
check(same["results"][0]["path"] == "meadow.webp", str(same))
text = json.loads(run("query", "--image", "my photos/night.png", "--to", "captions", "--json"))
check(text["results"][0]["caption"] == "the moon in a dark sky", str(text))
check("truncated" in run("status", "--problems"), "the broken picture is listed")
run("query", "", code=2)
run("query", "x", "--library", "nowhere", code=1)
print("the main job works from the wheel")
