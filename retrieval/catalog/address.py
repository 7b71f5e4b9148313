"""Where a catalog on PostgreSQL is: an address of SQLAlchemy's, and the schema in its database.

    postgresql+psycopg://user@host/database?schema=photos&sslmode=verify-full

Each library has a schema of its own, so that one database can hold several. Where the address names
none, it is called after the library's `uid`: names of folders repeat, and two folders that are both
called "photos" must not meet in one schema. `schema` is ours; all else after the question mark is
libpq's.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsearch.errors import SourceError
from mmsearch.retrieval.library_config import without_secrets

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["Address"]

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
"""Names that mean the same with and without quotes, and that fit PostgreSQL's 63 bytes."""


@dataclass(frozen=True, slots=True)
class Address:
    """A schema of a database.

    Attributes:
        url: of the database, with whatever password it names.
        schema: what the library's tables lie in.
        uid: the library that they are expected to hold.
        shown: what messages call it; no user and no password.
    """

    url: URL
    schema: str
    uid: str
    shown: str

    @classmethod
    def of(cls, address: str, uid: str) -> Address:
        """Return what an address of `LibraryConfig.catalog` means for a library.

        Raises:
            SourceError: it is none.
        """
        from sqlalchemy import exc, make_url

        shown = without_secrets(address)
        try:
            url = make_url(address).set(drivername="postgresql+psycopg")
        except (exc.ArgumentError, ValueError) as error:
            raise SourceError(
                f"{shown} is no address of a database. Give one such as "
                "postgresql+psycopg://user@host/database."
            ) from error
        named = url.query.get("schema")
        schema = f"mmsearch_{uid.replace('-', '')}" if named is None else named
        if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
            raise SourceError(
                f"'{schema}' is no name of a schema. Use small letters of ASCII, digits and "
                "underscores, such as ?schema=photos."
            )
        return cls(url.difference_update_query(["schema"]), schema, uid, f"{shown} ({schema})")

    @property
    def key(self) -> int:
        """A signed number of 32 bits for this schema, under which its advisory locks are kept.

        Should two schemas of one database share it, each waits for the other's writers.
        """
        number = zlib.crc32(f"mmsearch {self.schema}".encode())
        return number - (1 << 32) if number >= 1 << 31 else number
