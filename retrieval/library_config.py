"""What a library keeps elsewhere than in its own folder: `library.toml`, which people may edit.

    catalog = "postgresql+psycopg://user@host/database"     # instead of catalog.sqlite
    store = "milvus://host:19530/database"                  # instead of the files in index/
    uid = "5f0c…"                                           # whose catalog it is

A library without this file has both in its folder.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from mmsearch.errors import SourceError, StorageError
from mmsearch.indexes.base import replacing

__all__ = ["CONFIG", "LibraryConfig", "without_secrets"]

CONFIG = "library.toml"
CATALOGS = ("postgresql", "postgresql+psycopg")
STORES = ("milvus", "milvus+tls")


@dataclass(frozen=True, slots=True)
class LibraryConfig:
    """Where a library's parts are.

    Attributes:
        catalog: SQLAlchemy's address of a PostgreSQL database; None for a file in the folder.
        store: `milvus://host:port/database` (`milvus+tls://` where the connection is encrypted);
            None for index files in the folder.
        uid: the library that the catalog at `catalog` holds, as `LibraryRow.uid`; so that no
            other folder's catalog is ever taken for this one's.
    """

    catalog: str | None = None
    store: str | None = None
    uid: str | None = None

    def __post_init__(self) -> None:
        """Refuse addresses that nothing here understands.

        Raises:
            SourceError: that is so.
        """
        _check("catalog", self.catalog, CATALOGS, "postgresql+psycopg://user@host/database")
        _check("store", self.store, STORES, "milvus://host:19530/database")

    @classmethod
    def read(cls, folder: Path) -> LibraryConfig:
        """Return what a library's own folder says; the defaults where it says nothing.

        Raises:
            StorageError: the file cannot be read, or is none of ours.
            SourceError: an address in it is none.
        """
        path = folder / CONFIG
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise StorageError(f"{path} is no TOML ({error}). Mend it or delete it.") from error
        known = {field.name for field in fields(cls)}
        for name, value in said.items():
            if name not in known or not isinstance(value, str):
                raise StorageError(
                    f"{path} says {name} = {value!r}; only the texts {', '.join(sorted(known))} "
                    "are known. Mend it."
                )
        return cls(**said)

    def write(self, folder: Path) -> None:
        """Write the file, readable by its owner alone because an address may hold a password.

        A library that keeps nothing elsewhere has none.
        """
        path = folder / CONFIG
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        lines = [
            # A JSON text in ASCII is a TOML text.
            f"{name} = {json.dumps(value)}\n"
            for name, value in said.items()
            if value is not None
        ]
        if not lines:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.writelines(lines)


def without_secrets(address: str) -> str:
    """Return an address as it may be shown: without user and password."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _check(what: str, address: str | None, schemes: tuple[str, ...], example: str) -> None:
    if address is None:
        return
    try:
        parts = urlsplit(address)
        fits = parts.scheme in schemes and (bool(parts.hostname) or what == "catalog")
        _ = parts.port
    except ValueError:
        fits = False
    if not fits:
        # Not as it was given: it may hold a password.
        kind = address.partition(":")[0]
        raise SourceError(
            f"What was given as the address of a {what} ('{kind}:…') is none. Give one such as "
            f"{example}."
        )
