"""The shop's commands: `python -m shop --help`."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

import mmsearch
from mmsearch.errors import MmsearchError
from shop.errors import ShopError
from shop.messages import NewProduct
from shop.service import DATABASE, Shop

if TYPE_CHECKING:
    from mmsearch.retrieval.ingest import Progress

cli = typer.Typer(
    help="A small shop that recommends products by their pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    Path,
    typer.Option(metavar="FOLDER", envvar="SHOP_DATA", help="Where the shop keeps everything."),
]
DATA = Path("shop-data")
COLUMNS = ("id", "title", "category", "price", "picture")
EVERY_S = 5.0
"""Between two words about how far the pictures are."""
SHOWN = 5
"""Refused rows that are told one by one."""


@cli.command()
def demo(folder: Path) -> None:
    """Draw a catalogue of 96 products to try the shop with."""
    from shop.demo import draw_catalogue

    products = draw_catalogue(folder)
    _say(f"Drawn. Load it: python -m shop load {products} --pictures {folder / 'pictures'}")


@cli.command()
def load(
    products: Annotated[
        Path, typer.Argument(help=f"CSV (or .tsv) with the columns {', '.join(COLUMNS)}.")
    ],
    pictures: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the column picture starts from.")
    ],
    data: Data = DATA,
) -> None:
    """Add the products of a file, or replace them; pictures are only read."""
    refused: list[str] = []
    with Shop(data) as shop:
        started = time.perf_counter()
        count = shop.catalogue.load(
            ((product, pictures / picture) for product, picture in _rows(products, refused)),
            lambda product, reason: refused.append(f"{product.id}: {reason}"),
            _progress(),
        )
        _say(f"{count} products loaded ({time.perf_counter() - started:.1f} s).")
    for line in refused[:SHOWN]:
        _say(f"left out: {line}")
    if refused[SHOWN:]:
        _say(f"left out: {len(refused) - SHOWN} more")
    if count == 0:
        raise ShopError(f"{products} holds no product that can be used.")


@cli.command()
def serve(
    data: Data = DATA,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
) -> None:
    """Answer over HTTP; the page /docs lets one try everything."""
    import uvicorn

    from shop.app import create_app

    shop = Shop(data)
    if shop.catalogue.count() == 0:
        _say(f"There is no product in {data} yet: PUT some, or: python -m shop load --help")
    uvicorn.run(create_app(shop), host=host, port=port)


@cli.command()
def simulate(
    users: Annotated[int, typer.Option(min=1, help="How many.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    data: Data = DATA,
) -> None:
    """Add simulated users with histories, in the place of earlier ones."""
    from shop.simulation import simulate as simulated

    with _existing(data) as shop:
        products = shop.catalogue.all()
        if not products:
            raise ShopError("There is no product yet. Add some with: python -m shop load")
        histories = simulated(products, users, seed=seed, now=time.time())
        shop.histories.replace_simulated(histories)
    events = sum(map(len, histories.values()))
    _say(f"{users} simulated users with {events} events, named simulated-1, simulated-2 …")


@cli.command()
def evaluate(
    k: Annotated[int, typer.Option("-k", min=1, help="How many are recommended.")] = 10,
    seed: Annotated[int, typer.Option(help="Of what is drawn by chance.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON, too.")
    ] = None,
    data: Data = DATA,
) -> None:
    """Measure recommendations on the histories: was the next product among them?"""
    from shop.evaluation import Items, cases_of
    from shop.evaluation import evaluate as measured

    with _existing(data) as shop:
        products, events = shop.catalogue.all(), shop.histories.by_user()
        cases, simulated = cases_of(events), shop.histories.simulated()
        engine = shop.catalogue.engine
        if engine is None or not cases:
            raise ShopError(
                "Nobody has come to two products yet, so there is nothing to measure. Record "
                "events, or try it with: python -m shop simulate"
            )
        items = Items(
            [product.id for product in products],
            [product.category for product in products],
            engine.vectors([product.picture for product in products]),
        )
        results = measured(events, items, k=k, seed=seed)
        about: dict[str, Any] = {
            "k": k,
            "seed": seed,
            "users": len(cases),
            "users_simulated": sum(case.user in simulated for case in cases),
            "products": len(products),
            "categories": len(set(items.categories)),
            "model": engine.encoder.spec.label,
            "mmsearch": mmsearch.__version__,
        }
    print(f"| method | hit rate@{k} (95 %) | nDCG@{k} (95 %) | coverage |\n|---|---|---|---|")
    for each in results:
        print(table_row(each.to_json()))
    _say(
        f"{about['users']} users, {about['users_simulated']} of them simulated; {len(products)} "
        f"products in {about['categories']} categories; {about['model']}; seed {seed}"
    )
    if output is not None:
        document = about | {"methods": [each.to_json() for each in results]}
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _existing(data: Path) -> Shop:
    """Open the shop of a folder.

    Raises:
        ShopError: there is none.
    """
    if not (data / DATABASE).is_file():
        raise ShopError(
            f"There is no shop in {data}. Name its folder with --data, or make one with: "
            "python -m shop load"
        )
    return Shop(data)


def table_row(figures: dict[str, Any]) -> str:
    """Return a row of the table, in Markdown, from what `Measured.to_json` returns."""
    cells = [figures["method"]]
    for name in ("hit_rate", "ndcg"):
        low, high = figures[f"{name}_interval"]
        cells.append(f"{figures[name]:.3f} ({low:.3f} – {high:.3f})")
    return f"| {' | '.join(cells)} | {figures['coverage']:.2f} |"


def _rows(file: Path, refused: list[str]) -> Iterator[tuple[NewProduct, str]]:
    """Yield the products of a file, each with its picture; add the others to `refused`.

    Raises:
        ShopError: the file cannot be read, or lacks a column.
    """
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ShopError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ShopError(f"{file} is no UTF-8 text: {error}. Save it as UTF-8.") from error
    table = csv.DictReader(lines, delimiter=delimiter)
    missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise ShopError(
            f"{file} lacks the column {missing[0]}. Its first line must name the columns "
            f"{', '.join(COLUMNS)}."
        )
    for row in table:
        try:
            # A short line has None for what is missing.
            id_, title, category, price, picture = (row[name] or "" for name in COLUMNS)
            cents = int((Decimal(price) * 100).to_integral_value())
            product = NewProduct(id=id_, title=title, category=category, price_cents=cents)
        except ValidationError as error:
            first = error.errors()[0]
            field = first["loc"][0]
            refused.append(f"line {table.line_num}: {field} {first['input']!r}: {first['msg']}")
        except (InvalidOperation, ValueError, OverflowError):
            refused.append(f"line {table.line_num}: the price {price!r} is no number such as 19.90")
        else:
            yield product, picture


def _progress() -> Callable[[Progress], None]:
    """Return what tells now and then how far the pictures are."""
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        if progress.stage == "pictures" and time.monotonic() - told > EVERY_S:
            told = time.monotonic()
            _say(f"{progress.done} of {progress.total} pictures")

    return tell


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Run a command; what was refused on purpose is told without a traceback."""
    try:
        cli()
    except (ShopError, MmsearchError) as error:
        _say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
