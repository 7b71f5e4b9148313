"""The words of a catalog: always those of its files and captions, and any text may be asked."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.catalog import Catalog, KeptWords, migrations, word_search, words
from mmsearch.retrieval.schema import Caption, Problem, Target
from tests.test_catalog import SPEC, picture, unit

PATHS = (
    "IMG_2041.jpg",
    "2023/IMG_2041_edit.jpg",
    "2023/SummerTrip/DSC02041.JPG",
    "2023/SummerTrip/img-2041.png",
    "old/caf\udce9 au lait.jpg",
    "été à la plage.jpg",
    'odd "name" OR (x*.jpg',
)
TEXTS = ("a dog runs", "two dogs on a beach", "un café", "running water", "IMG_2041")


def filled(catalog: Catalog, paths=PATHS, captions=()) -> dict[str, int]:
    ids = {}
    with catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "four")
        transaction.activate(encoder_id)
        for path in paths:
            id_ = transaction.put_file(picture(path, os.fsencode(path)), encoder_id, unit(1, 2))
            ids[path] = id_
        for path, text in captions:
            transaction.set_captions(ids[path], [Caption(text, "sidecar")])
    return ids


@pytest.fixture
def catalog(tmp_path, address_of_catalog):
    opened = Catalog.create(tmp_path / "catalog.sqlite", address=address_of_catalog())
    yield opened
    opened.close()


def paths_found(catalog: Catalog, asked: str, **options) -> list[str]:
    found = catalog.words(asked, Target.IMAGES, 10, **options)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    return [hit.path for hit in catalog.file_hits(found)]


def test_files_are_found_by_parts_of_their_names(catalog):
    filled(catalog)
    for asked, expected in (
        ("2041", PATHS[:4]),
        ("img", {PATHS[0], PATHS[1], PATHS[3]}),
        ("trip", PATHS[2:4]),
        ("a summer", PATHS[2:4]),
        ("SummerTrip", PATHS[2:4]),
        ("ete plage", PATHS[5:6]),
        ("CAFÉ", PATHS[4:5]),
        ("caf\udce9", PATHS[4:5]),
        ("canon r5", PATHS),
        ("2023-08-12", PATHS),
    ):
        assert set(paths_found(catalog, asked)) == set(expected), asked
    assert paths_found(catalog, "the of a") == paths_found(catalog, "zebra") == []


@pytest.mark.parametrize("path", PATHS)
def test_a_file_name_with_or_without_ending_and_folders_comes_first(catalog, path):
    """Also where another picture has all these words in its caption, several times."""
    filled(catalog, captions=[("été à la plage.jpg", f"{words.legible(path)} img 2041 " * 3)])
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0]
    for asked in (path, name, stem, path.rpartition(".")[0], f"/any/where/{path}", f" {name} "):
        found = catalog.words(asked, Target.IMAGES, 10)
        assert found[0][1] == word_search.EXACT_NAME, asked
        assert catalog.file_hits(found)[0].path == path, asked
    assert (
        catalog.words(words.legible(stem).upper(), Target.IMAGES, 10)[0][1]
        == word_search.EXACT_NAME
    )


def test_another_folder_or_ending_is_not_what_was_asked(catalog):
    ids = filled(catalog, ("a/dog.jpg", "b/dog.jpg", "b/dog.png", "b/dog house.jpg"))
    exact = {
        asked: {
            id_ for id_, score in catalog.words(asked, Target.IMAGES, 9) if score == float("inf")
        }
        for asked in ("dog", "b/dog", "b/dog.png", "c/dog", "x/b/dog")
    }
    assert exact["dog"] == {ids["a/dog.jpg"], ids["b/dog.jpg"], ids["b/dog.png"]}
    assert exact["b/dog"] == {ids["b/dog.jpg"], ids["b/dog.png"]}
    assert exact["b/dog.png"] == {ids["b/dog.png"]}
    assert exact["c/dog"] == exact["x/b/dog"] == set()


def test_captions_are_found_by_their_words(catalog):
    pairs = [(PATHS[0], "a dog runs on a beach"), (PATHS[1], "a cat"), (PATHS[2], "a dog")]
    ids = filled(catalog, captions=pairs)
    found = catalog.words("dogs running", Target.CAPTIONS, 10)
    assert [hit.caption for hit in catalog.caption_hits(found)] == [
        "a dog runs on a beach",
        "a dog",
    ]
    assert all(score < word_search.EXACT_NAME for _, score in found)
    assert paths_found(catalog, "dogs running") == [PATHS[0], PATHS[2]]
    several = [Caption("a dog", "sidecar"), Caption("a dog that runs", "xmp")]
    with catalog.write() as transaction:
        transaction.set_captions(ids[PATHS[2]], several)
    assert len(catalog.words("dog", Target.IMAGES, 10)) == 2, "each picture once"


def test_only_some_may_be_chosen_from(catalog):
    ids = filled(catalog)
    everything = catalog.words("2041", Target.IMAGES, 10)
    among = np.array([ids[PATHS[2]], ids[PATHS[4]], 10**9])
    assert catalog.words("2041", Target.IMAGES, 1, among=among) == [
        pair for pair in everything if pair[0] == ids[PATHS[2]]
    ]
    # The best answers are all forbidden, whatever the limit is.
    for id_, score in everything:
        assert catalog.words("2041", Target.IMAGES, 1, among=np.array([id_])) == [(id_, score)]
    assert catalog.words("IMG_2041", Target.IMAGES, 5, among=np.array([], dtype=np.int64)) == []
    many = np.arange(200_000)
    assert catalog.words("2041", Target.IMAGES, 10, among=many) == everything


def test_words_that_too_many_have_are_left_out_where_others_are(catalog, monkeypatch):
    monkeypatch.setattr(word_search, "MOST_MATCHES", 3)
    captions = [(path, "a dog") for path in PATHS[1:]] + [(PATHS[0], "a zebra")]
    filled(catalog, captions=captions)
    assert paths_found(catalog, "zebra dog") == [PATHS[0]]
    assert len(paths_found(catalog, "dog")) == 6, "nothing else is asked"


def test_described_are_pictures_with_a_caption_or_a_name_of_words(catalog):
    paths = ("IMG_2041.jpg", "red leather chair.jpg", "two-of-the-dogs.jpg", "x/a_b_c_12345.jpg")
    ids = filled(catalog, paths, [("IMG_2041.jpg", "a dog")])
    assert catalog.described([*ids.values(), 10**9]) == {ids[paths[0]], ids[paths[1]]}
    assert catalog.described([ids[paths[2]]]) == set()


@pytest.fixture(scope="module")
def asked_anything(tmp_path_factory, address_of_catalog):
    folder = tmp_path_factory.mktemp("any")
    opened = Catalog.create(folder / "catalog.sqlite", address=address_of_catalog())
    filled(opened, captions=[(PATHS[0], "a dog"), (PATHS[1], "NEAR OR NOT col : *")])
    yield opened
    opened.close()


SYNTAX = st.sampled_from(['"', "'", "*", "^", "(", ")", ":", "NEAR(", " OR ", " NOT ", "-", "\0"])


@given(
    asked=st.one_of(
        st.text(st.characters(codec=None)),
        st.lists(SYNTAX | st.sampled_from(["dog", "name", "IMG_2041", "/"])).map("".join),
        st.lists(st.integers(), min_size=300, max_size=400).map(
            lambda row: " ".join(map(str, row))
        ),
    )
)
@settings(deadline=None)
def test_any_text_can_be_asked(asked_anything, asked):
    for target in Target:
        found = asked_anything.words(asked, target, 10)
        assert len(found) == len({id_ for id_, _ in found})
        # Quoting changes nothing: there is no syntax that it could switch off.
        if target is Target.CAPTIONS:
            assert asked_anything.words(f'"{asked}"', target, 10) == found


def everything(catalog: Catalog) -> list[object]:
    assert catalog.words_damage() == []
    key = "id" if catalog.served else "rowid"
    with catalog._connect() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT {key}, key, name, folder, facts FROM file_word ORDER BY {key}"
        ).all()
    asked = ("2041", "dog", "summer trip", "IMG_2041", "café", "canon nikon", "beach water")
    return [
        list(map(tuple, rows)),
        *(catalog.words(each, target, 50) for each in asked for target in Target),
    ]


def rebuilt(catalog: Catalog) -> None:
    if catalog.served:
        catalog.rebuild_words()
        return
    with catalog._connect(immediate=True) as connection:
        triggers = ("caption_word_insert", "caption_word_delete", "caption_word_update")
        for trigger in (*triggers, "file_word_delete"):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        for table in ("caption_word", "file_word"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        migrations.m006_words(connection)


CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.sampled_from(PATHS), st.sampled_from(["Canon", "Nikon", None])
        ),
        st.tuples(st.just("move"), st.sampled_from(PATHS), st.sampled_from(PATHS)),
        st.tuples(st.just("captions"), st.sampled_from(PATHS), st.sets(st.sampled_from(TEXTS))),
        st.tuples(st.just("remove"), st.sampled_from(PATHS), st.none()),
        st.tuples(st.just("problem"), st.sampled_from(PATHS), st.booleans()),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, address_of_catalog):
    """One for all examples where a new one takes its time; None elsewhere."""
    address = address_of_catalog()
    if address is None:
        yield None
        return
    opened = Catalog.create(tmp_path_factory.mktemp("served") / "catalog.sqlite", address=address)
    yield opened
    opened.close()


def emptied(changed, tmp_path_factory):
    if changed is None:
        return Catalog.create(tmp_path_factory.mktemp("changes") / "catalog.sqlite")
    with changed.write() as transaction:
        transaction.remove_files(changed.contents())
        transaction.resolve_problems([problem.path for problem in changed.problems()])
    return changed


@given(changes=CHANGES, together=st.booleans())
@settings(deadline=None, max_examples=40)
def test_after_any_changes_words_are_those_of_a_rebuild(  # noqa: C901
    tmp_path_factory, changed, changes, together
):
    catalog = emptied(changed, tmp_path_factory)
    ids = filled(catalog, PATHS[:4], [(PATHS[0], "a dog runs")])
    with catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "four")
    # In one transaction, or each in its own.
    for part in [changes] if together else [[change] for change in changes]:
        with catalog.write() as transaction:
            for kind, path, detail in part:
                made = picture(path, os.fsencode(path))
                if kind == "put":
                    changed = replace(made, camera=detail, taken_at=datetime(2020, 1, 2))
                    ids[path] = transaction.put_file(changed, encoder_id, unit(3, 4))
                elif path not in ids:
                    continue
                elif kind == "move" and detail not in ids:
                    transaction.refresh_file(ids[path], picture(detail, os.fsencode(path)))
                    ids[detail] = ids.pop(path)
                elif kind == "captions":
                    texts = [Caption(text, "sidecar") for text in sorted(detail)]
                    transaction.set_captions(ids[path], texts)
                elif kind == "remove":
                    transaction.remove_files([ids.pop(path)])
                elif kind == "problem":
                    transaction.put_problem(Problem(path, "corrupt", "torn"), forget=detail)
                    if detail:
                        del ids[path]
    kept = everything(catalog)
    rebuilt(catalog)
    assert everything(catalog) == kept
    assert [row[0] for row in kept[0]] == sorted(ids.values())
    if catalog is not changed:
        catalog.close()


def test_a_library_of_before_gets_its_words_when_it_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "catalog.sqlite"
    steps = migrations.MIGRATIONS
    before = steps[: steps.index(migrations.m006_words)]
    monkeypatch.setattr(migrations, "MIGRATIONS", before)
    Catalog.create(path).close()
    with closing(sqlite3.connect(path)) as connection:
        for id_, name in enumerate(PATHS, 1):
            stored = name if name.isprintable() else os.fsencode(name)
            connection.execute(
                "INSERT INTO file VALUES (?, ?, 1, 1, x'00', 'JPEG', 3, 2, 1, ?, 1, 1, ?, '', '')",
                (id_, stored, "2023-08-12 17:02:11.000000", "Canon EOS R5"),
            )
        connection.execute("INSERT INTO caption VALUES (1, 2, 'a dog on a beach', 'sidecar')")
        connection.commit()
    monkeypatch.undo()
    catalog = Catalog.open(path)
    assert [id_ for id_, _ in catalog.words("dogs", Target.IMAGES, 5)] == [2]
    assert catalog.words("caf\udce9 au lait", Target.IMAGES, 5)[0] == (5, word_search.EXACT_NAME)
    assert len(catalog.words("2023-08-12", Target.IMAGES, 50)) == len(PATHS)
    kept = everything(catalog)
    # As the code of today writes them.
    with catalog.write() as transaction:
        for id_, name in enumerate(PATHS, 1):
            transaction.refresh_file(id_, picture(name))
    assert everything(catalog) == kept
    catalog.close()


WHOLE = """
SELECT id, sum(score) AS score FROM (
    SELECT rowid AS id, -rank AS score FROM file_word
    WHERE file_word MATCH ? AND rank MATCH 'bm25(8.0, 4.0, 2.0, 1.0)'
    UNION ALL
    SELECT file_id, max(score) FROM (
        SELECT rowid, -rank AS score FROM caption_word WHERE caption_word MATCH ?
    ) AS found JOIN caption ON caption.id = found.rowid GROUP BY file_id
) GROUP BY id ORDER BY score DESC, id
"""


def weighed_whole(catalog: Catalog, asked: str) -> list[tuple[int, float]]:
    """Have FTS5 weigh a whole question in one expression a table."""
    terms = words.query_terms(asked)
    expressions = []
    with catalog._connect() as connection:
        for table in ("file_word", "caption_word"):
            count = f"SELECT count(*) FROM {table} WHERE {table} MATCH ?"
            found = {
                term: connection.exec_driver_sql(count, (words.quoted(term),)).scalar_one()
                for term in terms
            }
            parts = sorted((term for term in terms if found[term]), key=found.__getitem__)
            if table == "file_word" and len(parts) == len(terms) > 1:
                parts.append(asked)
            expressions.append(" OR ".join(map(words.quoted, parts)) or '""')
        return [tuple(row) for row in connection.exec_driver_sql(WHOLE, tuple(expressions))]


SOME = st.lists(
    st.sampled_from(
        [
            "dog",
            "dogs",
            "beach",
            "été",
            "café",
            "IMG",
            "2041",
            "trip",
            "Summer",
            "canon",
            "a",
            "running",
            "zebra",
        ]
    ),
    min_size=1,
    max_size=5,
).map(" ".join)


@given(asked=st.lists(SOME, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_words_added_up_score_what_the_whole_question_scores(summed, asked):
    catalog, kept = summed
    among = [None] * len(asked)
    found = catalog.words_of_many(asked, Target.IMAGES, 99, among=among, kept=kept)
    for text, ours in zip(asked, found, strict=True):
        whole = dict(weighed_whole(catalog, text))
        named = [id_ for id_, score in ours if score == word_search.EXACT_NAME]
        assert {id_ for id_, _ in ours} == {*whole, *named}
        # To the last bit, and in the same order.
        rest = [pair for pair in ours if pair[0] not in named]
        assert rest == [pair for pair in whole.items() if pair[0] not in named]


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    opened = Catalog.create(tmp_path_factory.mktemp("summed") / "catalog.sqlite")
    filled(opened, captions=[(path, TEXTS[i % len(TEXTS)]) for i, path in enumerate(PATHS)])
    yield opened, KeptWords()
    opened.close()
