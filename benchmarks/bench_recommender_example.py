"""What the example shop recommends to simulated users, and how soon a new product is live.

(a) Fashion products become the catalogue of `examples/recommender`, 500 users are simulated (see
`shop/simulation.py` for what is assumed) and `python -m shop evaluate` says how often the product
that each came to last is among the ten recommended. (b) Products that were kept back are put over
HTTP one after the other, each once while nothing else happens; after each, somebody who likes its
nearest product asks for recommendations.

A product's category is its type, which stands behind the gender in its second caption. `compact`
was trained with these products among its data, so these are no figures for products it never saw;
and simulated users like categories, so they say nothing of how real people choose.

usage: python bench_recommender_example.py DATA [--users 500] [--kept-back 20] [--seed 0]
DATA holds train.tsv (its rows of the kind `product_title` are the products) and images/.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench_recommend import CAPTION
from report import write_report

EXAMPLE = Path(__file__).parents[1] / "examples" / "recommender"
SHOP = [sys.executable, "-m", "shop"]


def write_products(data: Path, file: Path) -> list[dict[str, str]]:
    """Write the shop's product file, and return its rows."""
    captions = defaultdict(list)
    with (data / "train.tsv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["kind"] == "product_title":
                captions[row["path"]].append(row["caption"])
    rows = []
    for number, (path, texts) in enumerate(sorted(captions.items())):
        match = CAPTION.fullmatch(texts[1].lower()) if len(texts) > 1 else None
        if match is not None:
            rows.append(
                {
                    "id": Path(path).stem.lower(),
                    "title": texts[0],
                    "category": match[1].strip(),
                    # The data has none.
                    "price": str(10 + number % 90),
                    "picture": path,
                }
            )
    with file.open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def shop(data: Path, *arguments: str) -> None:
    subprocess.run([*SHOP, *arguments, "--data", str(data)], cwd=EXAMPLE, check=True)


@contextmanager
def serving(data: Path) -> Iterator[httpx.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*SHOP, "serve", "--port", port, "--data", str(data)]
    server = subprocess.Popen(command, cwd=EXAMPLE, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                try:
                    client.get("/health").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield client
    finally:
        server.terminate()
        server.wait()


def freshness(client: httpx.Client, rows: list[dict[str, str]], images: Path) -> dict[str, Any]:
    """Put products one by one; tell how long that took, and until each was recommended."""
    putting, until_live, asking, live = [], [], [], 0
    for number, row in enumerate(rows):
        fields = {"title": row["title"], "category": row["category"], "price_cents": 1990}
        picture = (images / row["picture"]).read_bytes()
        started = time.perf_counter()
        client.put(
            f"/products/{row['id']}", data=fields, files={"picture": picture}
        ).raise_for_status()
        answered = time.perf_counter()
        putting.append(answered - started)
        (near,) = client.get(f"/products/{row['id']}/similar", params={"k": 1}).json()
        user = f"fresh-{number}"
        event = {"product_id": near["product"]["id"], "kind": "like"}
        client.post(f"/users/{user}/events", json=event).raise_for_status()
        asked = time.perf_counter()
        found = client.get(f"/users/{user}/recommendations", params={"k": 10}).json()
        asking.append(time.perf_counter() - asked)
        live += any(each["product"]["id"] == row["id"] for each in found)
        until_live.append(time.perf_counter() - answered)
    return {
        "products_put": len(rows),
        "in_the_first_ten_of_who_likes_the_nearest": live,
        "put_ms": spread(putting),
        "similar_event_and_recommendations_after_it_ms": spread(until_live),
        "first_recommendations_ms": spread(asking),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(1000 * np.array(seconds), [0, 50, 100])
    return {"least": round(low, 1), "p50": round(middle, 1), "most": round(high, 1)}


def warm(client: httpx.Client, users: int) -> dict[str, float]:
    """Ask for the recommendations of simulated users, one after the other."""
    taken = []
    for number in range(1, users + 1):
        started = time.perf_counter()
        client.get(f"/users/simulated-{number}/recommendations").raise_for_status()
        taken.append(time.perf_counter() - started)
    return spread(taken)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--kept-back", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = options.data.absolute() / "images"
    seed = str(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, file = Path(folder) / "shop", Path(folder) / "products.csv"
        output = Path(folder) / "figures.json"
        rows = write_products(options.data, file)
        shop(data, "load", str(file), "--pictures", str(images))
        shop(data, "simulate", "--users", str(options.users), "--seed", seed)
        shop(data, "evaluate", "--seed", seed, "--output", str(output))
        figures = {"evaluation": json.loads(output.read_text())}
        generator = np.random.default_rng(options.seed)
        some = generator.choice(len(rows), options.kept_back, replace=False)
        kept_back = [rows[number] for number in some]
        known = [row for row in rows if row not in kept_back]
        with file.open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, rows[0])
            writer.writeheader()
            writer.writerows(known)
        shop(Path(folder) / "fresh", "load", str(file), "--pictures", str(images))
        shop(Path(folder) / "fresh", "simulate", "--users", "50", "--seed", seed)
        with serving(Path(folder) / "fresh") as client:
            figures["freshness"] = {
                "products": len(known),
                "load": round(os.getloadavg()[0], 2),
                "recommendations_of_50_users_ms": warm(client, 50),
                **freshness(client, kept_back, images),
            }
    write_report("recommender_example", figures, seed=options.seed)


if __name__ == "__main__":
    main()
