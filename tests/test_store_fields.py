"""Filters as expressions of a store, against what the catalog says of the same rows.

An expression reads as Python does, so it is evaluated here; `test_milvus.py` asks a real server.
"""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings

from mmsearch.retrieval.catalog.stored import Described
from mmsearch.retrieval.filters import parse_where
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.store_fields import FIELDS, expression, values
from tests.test_filtering import FILTERS, library  # noqa: F401 (a fixture)


def rows_of(catalog, target=Target.IMAGES):
    """Return what a store keeps, by id."""
    with catalog.snapshot() as snapshot:
        ids = [id_ for id_, _ in snapshot.files()]
    told = catalog.described_for_filters(target, ids)
    columns = values([told[id_] for id_ in ids])
    return {
        id_: {"id": id_} | {name: column[i] for name, column in columns.items()}
        for i, id_ in enumerate(ids)
    }


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(filter_=FILTERS)
def test_an_expression_is_true_of_what_the_catalog_finds(filter_, library):  # noqa: F811
    said = expression(filter_)
    if said is None:
        return
    code = compile(said, "expression", "eval")
    found = [id_ for id_, row in rows_of(library.catalog).items() if eval(code, {}, row)]
    assert found == library.catalog.matching(filter_).tolist(), said


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("width > height", "width > height"),
        ("width > 99.5", "width > 99"),
        ("width = 99.5", "id < 0"),
        ("size < 1e30", "id >= 0"),
        ("taken >= '2023'", "(taken != -4611686018427387904 and taken >= 1672531200000000)"),
        ("taken IS NULL", "taken == -4611686018427387904"),
        ("NOT taken IS NULL", "taken != -4611686018427387904"),
        ("NOT (format = 'PNG' AND width < 5)", '(format != "=PNG" or width >= 5)'),
        ("camera != 'x'", '(camera != "" and camera != "=x")'),
        ("path = 'a/b.jpg'", '(folder == "=a" and name == "=b.jpg")'),
        (
            "name = 'x\" or id >= 0 or name == \"\\'",
            'name == "=x\\" or id >= 0 or name == \\"\\\\"',
        ),
        ("ext IN ('jpg', 'png')", '(ext == "=jpg" or ext == "=png")'),
    ],
)
def test_what_is_said(where, said):
    assert expression(parse_where(where)) == said


@pytest.mark.parametrize(
    "where",
    [
        "path LIKE '%x%'",
        "NEAR(48, 2, 5km)",
        "caption = 'x'",
        "name < 'b'",
        "modified < taken",
        "width > latitude",
        "name = 'a\tb'",
        "width > 5 AND caption IS NULL",
    ],
)
def test_what_only_the_catalog_can_say(where):
    assert expression(parse_where(where)) is None


def test_texts_that_no_server_keeps_stay_different():
    names = [
        "caf\udce9",
        "caf\ufffd",
        "\ufffd636166e9",
        "a\0b",
        "a",
        "",
        "x" * 70_000,
        "x" * 70_001,
    ]
    rows = [
        Described(name, 1, 1, "PNG", 1, 1, 1, None, None, None, name[:3], datetime(2020, 1, 1))
        for name in names
    ]
    kept = values(rows)["name"]
    assert len(set(kept)) == len(names)
    assert all(len(each.encode()) <= 65_535 and "\0" not in each for each in kept)
    assert values(rows[:1])["taken"] == [-(2**62)]
    assert set(values(rows)) == {field.name for field in FIELDS}
