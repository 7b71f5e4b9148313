"""Captions of a catalog: what people and models say of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.connection import is_postgresql
from mmsearch.retrieval.schema import GENERATED

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mmsearch.retrieval.schema import Caption

__all__ = [
    "Undescribed",
    "add_captions",
    "count_unembedded",
    "files_captioned_by",
    "forget_generated",
    "lacking_vectors",
    "own",
    "set_captions",
    "undescribed",
    "unembedded",
    "unembedded_of",
]


@dataclass(frozen=True, slots=True)
class Undescribed:
    """A content about which nobody says anything.

    Attributes:
        path: one of its files.
        ids: all of its pictures that lack a caption.
    """

    path: str
    ids: list[int]


def own(connection: Connection) -> list[tuple[int, int, str]]:
    """Return people's captions by id: each one's id, its picture's id and its text."""
    caption = tables.caption.c
    written = caption.source.not_like(f"{GENERATED}%")
    statement = (
        select(caption.id, caption.file_id, caption.text).where(written).order_by(caption.id)
    )
    return [(id_, file_id, text) for id_, file_id, text in connection.execute(statement)]


def files_captioned_by(connection: Connection, source: str) -> list[int]:
    """Return the ids of the files that have a caption from this source."""
    caption = tables.caption.c
    statement = select(caption.file_id).where(caption.source == source).distinct()
    return list(connection.scalars(statement))


def undescribed(connection: Connection, source: str) -> list[Undescribed]:
    """Return, by path, pictures without a caption of people's own or of this source."""
    file, caption = tables.file.c, tables.caption.c
    enough = caption.source.not_like(f"{GENERATED}%") | (caption.source == source)
    statement = (
        select(file.sha256, file.id, file.path)
        .where(file.id.not_in(select(caption.file_id).where(enough)))
        .order_by(file.path)
    )
    found: dict[bytes, Undescribed] = {}
    for sha256, id_, path in connection.execute(statement):
        found.setdefault(bytes(sha256), Undescribed(path, [])).ids.append(id_)
    return list(found.values())


def unembedded(
    connection: Connection, encoder_id: int, limit: int, *, skip: int
) -> list[tuple[int, str]]:
    """Return up to `limit` captions (id, text) that this encoder has not embedded.

    Args:
        connection: to a catalog.
        encoder_id: the encoder.
        limit: how many.
        skip: leave out so many before them.
    """
    caption, vector = tables.caption.c, tables.caption_vector.c
    joined = tables.caption.outerjoin(
        tables.caption_vector,
        (vector.caption_id == caption.id) & (vector.encoder_id == encoder_id),
    )
    statement = (
        select(caption.id, caption.text)
        .select_from(joined)
        .where(vector.caption_id.is_(None))
        .order_by(caption.id)
        .limit(limit)
    )
    if skip:
        statement = statement.offset(skip)
    return [(id_, text) for id_, text in connection.execute(statement)]


def count_unembedded(connection: Connection, encoder_id: int) -> int:
    """Return how many captions this encoder has not embedded."""
    caption, vector = tables.caption, tables.caption_vector
    done = select(func.count()).select_from(vector).where(vector.c.encoder_id == encoder_id)
    total = connection.scalar(select(func.count()).select_from(caption)) or 0
    return total - (connection.scalar(done) or 0)


def unembedded_of(connection: Connection, file_id: int, encoder_id: int) -> list[tuple[int, str]]:
    """Return the captions (id, text) of a picture that this encoder has not embedded."""
    caption, vector = tables.caption.c, tables.caption_vector.c
    embedded = select(vector.caption_id).where(
        vector.caption_id == caption.id, vector.encoder_id == encoder_id
    )
    statement = select(caption.id, caption.text).where(
        caption.file_id == file_id, ~embedded.exists()
    )
    return [(id_, text) for id_, text in connection.execute(statement)]


def lacking_vectors(connection: Connection, encoder_id: int, ids: Sequence[int]) -> set[int]:
    """Return those of the captions that are there and that this encoder has not embedded."""
    caption, vector = tables.caption.c, tables.caption_vector.c
    done = select(vector.caption_id).where(
        vector.caption_id == caption.id, vector.encoder_id == encoder_id
    )
    lacking = select(caption.id).where(caption.id.in_(ids), ~done.exists())
    return set(connection.scalars(lacking))


def add_captions(connection: Connection, captions: Mapping[int, Sequence[Caption]]) -> bool:
    """See `Transaction.add_captions`; return whether there were any."""
    return _insert(connection, {file_id: _by_text(said) for file_id, said in captions.items()})


def set_captions(
    connection: Connection,
    file_id: int,
    captions: Sequence[Caption],
    *,
    sources: Iterable[str] | None,
) -> bool:
    """See `Transaction.set_captions`; return whether there are other captions now."""
    columns = tables.caption.c
    rows = connection.execute(
        select(columns.id, columns.text, columns.source).where(columns.file_id == file_id)
    ).all()
    spoken_for = None if sources is None else set(sources)
    wanted = _by_text(captions)
    stale = []
    for id_, text, source in rows:
        if spoken_for is None:
            ours = not source.startswith(("file:", GENERATED))
        else:
            ours = source in spoken_for
        if ours and wanted.get(text) == source:
            del wanted[text]
        elif ours:
            stale.append(id_)
    if stale:
        for part in tables.in_parts(stale):
            connection.execute(delete(tables.caption).where(columns.id.in_(part)))
    changed = _insert(connection, {file_id: wanted}) or bool(stale)
    by_people = select(columns.id).where(
        columns.file_id == file_id, columns.source.not_like(f"{GENERATED}%")
    )
    if connection.execute(by_people.limit(1)).first() is not None:
        changed = forget_generated(connection, file_id) or changed
    return changed


def forget_generated(connection: Connection, file_id: int) -> bool:
    """Forget what models wrote about a picture; return whether there was anything."""
    columns = tables.caption.c
    written = columns.source.like(f"{GENERATED}%")
    gone = delete(tables.caption).where(columns.file_id == file_id, written)
    return connection.execute(gone).rowcount > 0


def _insert(connection: Connection, captions: Mapping[int, Mapping[str, str]]) -> bool:
    """Write sources by texts, by pictures' ids; return whether there were any."""
    rows = [
        {"file_id": file_id, "text": text, "source": source}
        for file_id, sources in captions.items()
        for text, source in sources.items()
    ]
    if not rows:
        return False
    if not is_postgresql(connection):
        # Triggers see to the words.
        connection.execute(insert(tables.caption), rows)
        return True
    from mmsearch.retrieval.catalog import texts_postgresql, words_postgresql

    given = insert(tables.caption).returning(tables.caption.c.id, sort_by_parameter_order=True)
    ids = connection.scalars(given, rows).all()
    texts = {id_: str(row["text"]) for id_, row in zip(ids, rows, strict=True)}
    words_postgresql.put_caption_words(connection, texts)
    texts_postgresql.put_captions(connection, texts)
    return True


def _by_text(captions: Sequence[Caption]) -> dict[str, str]:
    """Return the sources of captions by their texts."""
    # Reversed, so that the first source that gives a text keeps it.
    return {caption.text: caption.source for caption in reversed(captions)}
