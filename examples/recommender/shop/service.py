"""The shop as a whole, in one folder.

data/shop.sqlite           products, users, events
data/pictures/ID.jpg       with ID.txt, its title
data/pictures/.mmsearch/   mmsearch's library
"""

from __future__ import annotations

from pathlib import Path

from shop.catalogue import Catalogue
from shop.database import open_database
from shop.histories import Histories
from shop.recommendations import Recommendations

__all__ = ["DATABASE", "Shop"]

DATABASE = "shop.sqlite"


class Shop:
    """What one data folder holds. Safe to use from several threads."""

    def __init__(self, data: Path) -> None:
        """Open the shop in a folder, making an empty one where there is none."""
        pictures = data / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        self._sessions = open_database(data / DATABASE)
        self.catalogue = Catalogue(self._sessions, pictures)
        self.histories = Histories(self._sessions)
        self.recommendations = Recommendations(self.catalogue, self.histories)

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release database and library."""
        self.catalogue.close()
        self._sessions.kw["bind"].dispose()
