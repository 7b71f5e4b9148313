"""The recommender example: a real server, real files, drawn products, the bundled encoder."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "recommender"
CATEGORIES = ("mugs", "shirts", "chairs")
COLOURS = ("red", "blue", "green", "black")
HOMES = ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME", "XDG_DATA_HOME")


@pytest.fixture(scope="module", autouse=True)
def _example_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the example be imported, and give its servers one home for all tests."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        for name in ("EXAMPLE_HOME", *HOMES):
            patch.setenv(name, home)
        yield


def shop(data: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command of the shop in this process; return what it wrote to stdout and stderr."""
    from shop.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["shop", *arguments, "--data", str(data)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def environment() -> dict[str, str]:
    # What this process imports as mmsearch, wherever it was found.
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return os.environ | path | dict.fromkeys(HOMES, os.environ["EXAMPLE_HOME"])


@contextmanager
def serving(data: Path) -> Iterator[httpx.Client]:
    """Run the service as its own process; it is killed at the end, as by a power cut."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shop", "serve", "--port", str(port), "--data", str(data)]
    log = data.parent / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=EXAMPLE, env=environment(), stdout=output, stderr=output
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield client
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shop.demo import draw_catalogue

    folder = tmp_path_factory.mktemp("demo")
    draw_catalogue(folder, categories=CATEGORIES, colours=COLOURS)
    return folder


@pytest.fixture(scope="module")
def loaded(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a shop with all drawn products but red mugs."""
    with (demo / "products.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    some = demo / "some.csv"
    with some.open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if "red mug" not in row[1])
    data = tmp_path_factory.mktemp("shop") / "data"
    _, told = shop(data, "load", str(some), "--pictures", str(demo / "pictures"))
    assert told.startswith("22 products loaded")
    return data


def put(client: httpx.Client, id_: str, picture: Path, **fields: Any) -> httpx.Response:
    form = {"title": id_.replace("-", " "), "category": "mugs", "price_cents": 1990} | fields
    with picture.open("rb") as file:
        return client.put(f"/products/{id_}", data=form, files={"picture": file})


def did(client: httpx.Client, user: str, kind: str, product: str, **fields: Any) -> httpx.Response:
    event = {"product_id": product, "kind": kind} | fields
    return client.post(f"/users/{user}/events", json=event)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["product"]["id"] for each in answer.json()]


def test_the_service_from_end_to_end(demo: Path, loaded: Path) -> None:
    pictures = demo / "pictures"
    with serving(loaded) as client:
        assert client.get("/health").json()["products"] == 22

        # Nobody did anything yet: a view of the whole catalogue, of more than one category.
        cold = client.get("/users/nobody/recommendations", params={"k": 4})
        assert len(ids(cold)) == 4
        assert {each["reason"]["kind"] for each in cold.json()} == {"overview"}
        assert len({each["product"]["category"] for each in cold.json()}) > 1

        assert did(client, "anna", "like", "mug-green-large").status_code == 201
        assert did(client, "anna", "buy", "mug-blue-large").status_code == 201
        old = {"at": "2020-01-01T00:00:00+02:00"}
        assert did(client, "anna", "view", "chair-red-large", **old).json()["at"].startswith("2019")
        did(client, "anna", "dislike", "mug-black-large")
        everything = client.get("/users/anna/recommendations?k=100&diversity=0")
        seen = {"mug-green-large", "mug-blue-large", "chair-red-large", "mug-black-large"}
        assert len(ids(everything)) == 22 - 4
        assert not seen & set(ids(everything))
        first = everything.json()[0]
        assert first["product"]["category"] == "mugs"
        assert first["reason"]["product_id"] in {"mug-green-large", "mug-blue-large"}
        told = {
            "mug-green-large": "because you liked large green mug",
            "mug-blue-large": "because you bought large blue mug",
        }
        assert first["reason"]["text"] == told[first["reason"]["product_id"]]
        scores = [each["score"] for each in everything.json()]
        assert scores == sorted(scores, reverse=True)
        only = client.get("/users/anna/recommendations?category=shirts&k=100")
        assert len(ids(only)) == 8
        assert all(id_.startswith("shirt-") for id_ in ids(only))
        assert ids(client.get("/users/anna/recommendations?category=hats")) == []

        # A new product is in the very next answer.
        started = time.perf_counter()
        created = put(client, "mug-red-large", pictures / "mug-red-large.png", title="crimson cup")
        found = ids(client.get("/users/anna/recommendations?k=5&diversity=0"))
        assert created.status_code == 201, created.text
        assert "mug-red-large" in found
        assert ids(client.get("/search", params={"q": "crimson cup", "k": 1})) == ["mug-red-large"]
        assert time.perf_counter() - started < 30, "far more than it takes"

        # Put again with another picture and title, it is another product.
        other = {"title": "tee", "category": "shirts"}
        again = put(client, "mug-red-large", pictures / "shirt-red-large.png", **other)
        assert again.status_code == 200
        assert client.get("/products/mug-red-large").json()["title"] == "tee"
        assert ids(client.get("/products/mug-red-large/similar?k=1")) == ["shirt-red-large"]
        assert "mug-red-large" in ids(
            client.get("/users/anna/recommendations?category=shirts&k=100")
        )

        # What others chose is what somebody unknown gets.
        did(client, "ben", "view", "chair-blue-small")
        did(client, "cleo", "view", "chair-blue-small")
        popular = client.get("/users/nobody/recommendations?k=6").json()
        assert popular[0]["product"]["id"] == "chair-blue-small"
        assert popular[0]["reason"]["text"] == "popular: 2 people chose it"
        assert popular[-1]["reason"]["kind"] == "overview"
        assert len({each["product"]["id"] for each in popular}) == 6
        before = client.get("/users/anna/recommendations").json()

    # Killed and started again: everything is there.
    with serving(loaded) as client:
        health = client.get("/health").json()
        assert (health["products"], health["pictures"]) == (23, 23)
        after = client.get("/users/anna/recommendations").json()
        assert [each["product"] for each in after] == [each["product"] for each in before]
        assert [each["reason"] for each in after] == [each["reason"] for each in before]


def test_what_cannot_be_done_is_told(demo: Path, loaded: Path, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.jpg"
    nonsense.write_bytes(b"no picture at all")
    picture = demo / "pictures" / "mug-red-small.png"
    with serving(loaded) as client:
        count = client.get("/health").json()["products"]
        refused = put(client, "mug-red-small", nonsense)
        assert refused.status_code == 422
        assert "The picture cannot be used" in refused.json()["detail"]
        assert client.get("/products/mug-red-small").status_code == 404
        assert put(client, "UPPER", picture).status_code == 422
        assert put(client, "mug-red-small", picture, price_cents=-1).status_code == 422
        assert put(client, "mug-red-small", picture, title="  ").status_code == 422
        assert client.get("/health").json()["products"] == count
        unknown = did(client, "anna", "view", "nothing")
        assert unknown.status_code == 404
        assert unknown.json()["detail"].endswith("Add it with: PUT /products/nothing")
        assert did(client, "anna", "eat", "mug-blue-large").status_code == 422
        later = did(client, "anna", "view", "mug-blue-large", at="2100-01-01T00:00:00Z")
        assert "lies in the future" in later.json()["detail"]
        naive = did(client, "anna", "view", "mug-blue-large", at="2020-01-01T00:00:00")
        assert naive.status_code == 422
        assert client.get("/search?q=AND").status_code == 422
        assert client.get("/users/anna/recommendations?k=0").status_code == 422
        assert client.get("/products/nothing/similar").status_code == 404


def test_many_at_once(demo: Path, loaded: Path) -> None:
    """Products are put and events recorded while others ask; nothing is lost, nothing fails."""
    with serving(loaded) as client:

        def one(number: int) -> int:
            user = f"user-{number % 3}"
            if number % 5 == 0:
                picture = demo / "pictures" / f"chair-{COLOURS[number % 4]}-small.png"
                return put(client, f"copy-{number}", picture, category="copies").status_code
            if number % 5 == 1:
                return client.get(f"/users/{user}/recommendations").status_code - 1
            return did(client, user, "like", "shirt-blue-small").status_code - 1

        before = client.get("/health").json()["products"]
        with ThreadPoolExecutor(8) as pool:
            statuses = [*pool.map(one, range(40))]
        assert {status for number, status in enumerate(statuses) if number % 5 == 0} == {201}
        assert {status for number, status in enumerate(statuses) if number % 5 == 1} == {199}
        assert {status for number, status in enumerate(statuses) if number % 5 > 1} == {200}
        health = client.get("/health").json()
        assert health["products"] == health["pictures"] == before + 8
        copies = ids(client.get("/users/user-2/recommendations?category=copies&k=100"))
        assert len(copies) == 8


def test_an_empty_shop_and_its_first_product(demo: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as client:
        assert client.get("/health").json()["model"] is None
        assert ids(client.get("/users/anna/recommendations")) == []
        assert ids(client.get("/search?q=mug")) == []
        assert put(client, "one", demo / "pictures" / "mug-red-small.png").status_code == 201
        assert ids(client.get("/users/anna/recommendations")) == ["one"]
        did(client, "anna", "view", "one")
        assert ids(client.get("/users/anna/recommendations")) == []


def test_what_a_killed_process_left_is_put_right(demo: Path, tmp_path: Path) -> None:
    from shop.messages import NewProduct
    from shop.service import Shop

    pictures = demo / "pictures"
    mug, chair = pictures / "mug-red-large.png", pictures / "chair-red-large.png"
    with Shop(tmp_path) as opened:
        for name, picture in (("one", mug), ("two", chair)):
            product = NewProduct(id=name, title=name, category="all", price_cents=1)
            assert opened.catalogue.put(product, picture.read_bytes())
    kept = tmp_path / "pictures"
    # One picture was replaced, but not indexed; another was indexed, but has no product.
    shutil.copy(kept / "two.jpg", kept / "one.jpg")
    shutil.copy(kept / "two.jpg", kept / "orphan.jpg")
    with Shop(tmp_path) as opened:
        opened.catalogue.catch_up()
        (found,) = opened.catalogue.similar("one", 5)
        assert found.product.id == "two"
        assert found.score == pytest.approx(1, abs=1e-3)
        assert opened.catalogue.engine is not None
        assert len(opened.catalogue.engine) == 3


def test_another_process_that_adds_products_is_waited_for(demo: Path, loaded: Path) -> None:
    from filelock import FileLock

    picture = demo / "pictures" / "mug-red-small.png"
    with serving(loaded) as client:
        with FileLock(loaded / "pictures" / ".mmsearch" / "lock"):
            refused = put(client, "late", picture)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert client.get("/users/anna/recommendations").status_code == 200
        assert put(client, "late", picture).status_code == 201


def test_loading_says_what_it_leaves_out(demo: Path, tmp_path: Path) -> None:
    products = tmp_path / "products.tsv"
    products.write_text(
        "id\ttitle\tcategory\tprice\tpicture\n"
        "one\tA mug\tmugs\t19.90\tmug-red-small.png\n"
        "two\tNo picture\tmugs\t5\tgone.png\n"
        "three\tNo price\tmugs\tfree\tmug-red-small.png\n"
        "Four\tNo id\tmugs\t5\tmug-red-small.png\n"
        "five\n"
    )
    pictures = str(demo / "pictures")
    _, told = shop(tmp_path / "data", "load", str(products), "--pictures", pictures)
    assert told.startswith("1 products loaded")
    assert "two: " in told
    assert "line 4: the price 'free' is no number such as 19.90" in told
    assert "line 5: id 'Four': " in told
    assert "line 6: " in told
    products.write_text("id\ttitle\n")
    _, failed = shop(tmp_path / "data", "load", str(products), "--pictures", pictures, code=1)
    assert "lacks the column category" in failed
    _, nobody = shop(tmp_path / "data", "evaluate", code=1)
    assert "python -m shop simulate" in nobody
    _, nowhere = shop(tmp_path / "elsewhere", "simulate", code=1)
    assert nowhere.startswith("There is no shop in")
    assert not (tmp_path / "elsewhere").exists()
    _, unread = shop(tmp_path / "data", "load", "gone.csv", "--pictures", pictures, code=1)
    assert unread == "gone.csv cannot be read: No such file or directory.\n"


def test_evaluation_of_simulated_users(loaded: Path, tmp_path: Path) -> None:
    shop(loaded, "simulate", "--users", "300")
    written = tmp_path / "figures.json"
    table = shop(loaded, "evaluate", "-k", "3", "--output", str(written))[0].splitlines()
    figures = json.loads(written.read_text())
    assert 290 <= figures["users_simulated"] <= 300
    assert figures["users"] >= figures["users_simulated"]
    methods = {each["method"]: each for each in figures["methods"]}
    assert len(table) == 2 + len(methods)
    average, random = methods["mmsearch, average"], methods["random"]
    # Intervals lie apart: drawn products of a category look alike, and users like categories.
    assert average["hit_rate_interval"][0] > random["hit_rate_interval"][1]
    assert average["ndcg_interval"][0] > random["ndcg_interval"][1]
    assert methods["popular"]["coverage"] < average["coverage"] <= 1


def test_simulated_users_are_drawn_from_the_seed() -> None:
    from shop.database import Product
    from shop.simulation import simulate

    products = [
        Product(id=f"p{number}", title="p", category="abcd"[number % 4], price_cents=1)
        for number in range(80)
    ]

    def drawn(seed: int) -> list[tuple[str, str, str, float]]:
        users = simulate(products, 200, seed=seed, now=1e9)
        return [(e.user_id, e.product_id, e.kind, e.at) for own in users.values() for e in own]

    assert drawn(1) == drawn(1) != drawn(2)
    by_user = simulate(products, 200, seed=1, now=1e9)
    shares = []
    for own in by_user.values():
        assert [e.at for e in own] == sorted(e.at for e in own)
        assert 1e9 - 90 * 86_400 <= own[0].at <= own[-1].at <= 1e9
        assert len({e.product_id for e in own}) == len(own)
        of = [int(e.product_id[1:]) % 4 for e in own]
        shares.append(max(map(of.count, of)) / len(of))
    # Of four categories each user likes one most; without a taste the share would be near 0.4.
    assert np.mean(shares) > 0.5


def events(*rows: tuple[str, str, float]) -> list[Any]:
    from shop.database import Event, Kind

    return [Event(user_id="u", product_id=id_, kind=Kind(kind), at=at) for kind, id_, at in rows]


def test_the_readme_tells_what_is_there(tmp_path: Path) -> None:
    from shop.__main__ import cli, table_row
    from shop.app import create_app
    from shop.service import Shop

    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (EXAMPLE / link).exists(), link
    commands = {command.callback.__name__ for command in cli.registered_commands}
    assert set(re.findall(r"python -m shop (\w+)", text)) == commands
    with Shop(tmp_path) as opened:
        paths = create_app(opened).openapi()["paths"]
    served = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    assert set(re.findall(r"^\| `([A-Z]+) (/[^?`]*)", text, re.MULTILINE)) == served
    figures = json.loads((ROOT / "benchmarks/results/recommender_example.json").read_text())
    for method in figures["figures"]["evaluation"]["methods"]:
        assert table_row(method) in text


def test_taste_is_the_last_opinion() -> None:
    from shop.histories import taste_of

    day = 86_400.0
    taste = taste_of(
        events(
            ("view", "a", 0),
            ("like", "b", day),
            ("dislike", "c", 2 * day),
            ("buy", "c", 3 * day),
            ("view", "a", 4 * day),
            ("dislike", "b", 5 * day),
            ("view", "c", 6 * day),
            ("view", "d", 11 * day),
        ),
        now=10 * day,
    )
    assert dict(taste.liked) == {"c": "buy"}
    assert taste.viewed == {"a": 6.0, "d": 0.0}
    assert taste.disliked == ["b"]


def test_the_last_product_is_held_out() -> None:
    from shop.evaluation import cases_of

    one = events(
        ("view", "a", 1), ("dislike", "x", 2), ("view", "b", 3), ("like", "a", 4), ("buy", "b", 5)
    )
    (case,) = cases_of({"one": one, "of a single product": events(("buy", "a", 1))})
    assert (case.user, case.target, case.at) == ("one", "b", 3)
    assert case.seen == {"a", "x"}
    assert dict(case.taste.viewed) == {"a": 2 / 86_400}, "the later like is not known yet"
    assert case.taste.disliked == ["x"]
    # Who first disliked a product had seen it: it is not to be recommended, so not to be found.
    assert cases_of({"u": events(("view", "a", 1), ("dislike", "b", 2), ("buy", "b", 3))}) == []


def test_figures_against_hand_computed_ones() -> None:
    from shop.evaluation import Items, discounted_gains, evaluate, ranks

    places = ranks([[4, 5, 6], [4, 5, 6], [4, 5, 6], []], [4, 6, 9, 4])
    assert places.tolist() == [1, 3, 0, 0]
    expected = [1 / math.log2(2), 1 / math.log2(4), 0, 0]
    assert discounted_gains(places).tolist() == pytest.approx(expected)

    # Two kinds of products: a0, a1, a2 look alike, and so do b0, b1, b2.
    angles = np.radians([0, 10, 25, 90, 100, 115])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    items = Items(["a0", "a1", "a2", "b0", "b1", "b2"], ["a"] * 3 + ["b"] * 3, vectors)
    histories = {
        # In the order of time: v had come to b0 when w came to b1, u to a1 after everybody else.
        "v": events(("view", "a0", 10), ("view", "b0", 11)),
        "w": events(("like", "b0", 12), ("view", "b1", 13)),
        "u": events(("view", "a0", 14), ("view", "a1", 15)),
    }
    found = {each.method: each for each in evaluate(histories, items, k=2)}
    # v (a0 → b0): [a1, a2], missed. w (b0 → b1): [b1, b2], first. u (a0 → a1): [a1, a2], first.
    average = found["mmsearch, average"]
    assert average.hit_rate == pytest.approx(2 / 3)
    assert average.ndcg == pytest.approx(2 / 3)
    assert average.coverage == pytest.approx(4 / 6)
    # v: only a0 is known, and seen: [a1, a2], missed. w: a0 and b0 were come to by v, b0 is seen
    # by w: [a0, a1], missed. u: b0 has two, a0 is seen, b1 has one: [b0, b1], missed.
    popular = found["popular"]
    assert popular.hit_rate == 0
    assert popular.coverage == pytest.approx(5 / 6)
    # v: [a1, a2], missed. w: all of b, but b0, have equal popularity: [b1, b2], first. u: [a1, a2].
    in_categories = found["popular in the user's categories"]
    assert in_categories.hit_rate == pytest.approx(2 / 3)
    assert in_categories.ndcg == pytest.approx(2 / 3)
    assert 0 <= average.hit_rate_interval[0] <= average.hit_rate <= average.hit_rate_interval[1]
