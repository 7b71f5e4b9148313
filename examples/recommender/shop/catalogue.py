"""The catalogue: products in SQL, their pictures and titles in mmsearch's library.

A product's picture is `pictures/ID.jpg`, its title the side-car `pictures/ID.txt`, which mmsearch
takes for the picture's caption. So the name of the file is all that ties SQL and library together,
and either can be made again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import func, select

import mmsearch
from mmsearch.errors import LibraryLocked, LibraryNotFound, MediaError
from mmsearch.retrieval.media import load_rgb, open_picture
from shop.database import Product, picture_name
from shop.errors import UnknownProduct, UnusablePicture
from shop.messages import Found, NewProduct, ProductOut

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from mmsearch import Hit, SearchEngine
    from mmsearch.retrieval.ingest import Progress

__all__ = ["Catalogue"]

logger = logging.getLogger(__name__)

LONGEST_SIDE = 1024
"""Pictures are kept no larger: more pixels change nothing of what they are compared by."""


class Catalogue:
    """All products. Safe to use from several threads."""

    def __init__(self, sessions: sessionmaker[Session], pictures: Path) -> None:
        """Name the database and the folder of pictures, which belongs to the shop."""
        self._sessions = sessions
        self._pictures = pictures
        self._engine: SearchEngine | None = None
        self._opening = Lock()
        self._writing = Lock()

    @property
    def engine(self) -> SearchEngine | None:
        """The library, ready to be asked; None as long as there is no product."""
        with self._opening:
            if self._engine is None:
                try:
                    self._engine = mmsearch.open(self._pictures)
                except LibraryNotFound:
                    return None
            return self._engine

    def catch_up(self) -> None:
        """Bring the library in step with the pictures, in case the last process was killed."""
        if next(self._pictures.glob("*.jpg"), None) is None:
            return
        engine = self.engine
        try:
            mmsearch.index(self._pictures, model=engine.encoder if engine else None)
        except LibraryLocked:
            logger.info("another process is adding products: it will do")

    def close(self) -> None:
        """Release the library."""
        with self._opening:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def put(self, product: NewProduct, picture: bytes) -> bool:
        """Add a product, or replace it, and tell whether it is new.

        When this returns, the product is in everybody's answers.

        Raises:
            UnusablePicture: it cannot be read; nothing was changed.
            LibraryLocked: another process is adding products; to be put again.
        """
        jpeg = _as_jpeg(picture)
        with self._writing:
            self._write(product, jpeg)
            engine = self.engine
            file = self._pictures / picture_name(product.id)
            mmsearch.index([file], root=self._pictures, model=engine.encoder if engine else None)
            with self._sessions.begin() as session:
                is_new = session.get(Product, product.id) is None
                session.merge(Product(**product.model_dump()))
        return is_new

    def load(
        self,
        products: Iterable[tuple[NewProduct, Path]],
        refused: Callable[[NewProduct, str], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Add many products at once, or replace them; return how many.

        Args:
            products: each with its picture, which is only read.
            refused: called with a product whose picture cannot be used, and the reason.
            progress: called often while pictures are embedded.
        """
        usable = []
        with self._writing:
            for product, picture in products:
                try:
                    self._write(product, _as_jpeg(picture.read_bytes()))
                except OSError as error:
                    refused(product, f"{picture} cannot be read: {error.strerror}")
                except UnusablePicture as error:
                    refused(product, str(error))
                else:
                    usable.append(product)
            if usable:
                mmsearch.index(self._pictures, progress=progress)
                with self._sessions.begin() as session:
                    for product in usable:
                        session.merge(Product(**product.model_dump()))
        return len(usable)

    def get(self, id_: str) -> Product:
        """Return a product.

        Raises:
            UnknownProduct: there is none with this id.
        """
        with self._sessions() as session:
            product = session.get(Product, id_)
        if product is None:
            raise UnknownProduct(id_)
        return product

    def all(self, category: str | None = None) -> list[Product]:
        """Return all products, or those of a category, by id."""
        statement = select(Product).order_by(Product.id)
        if category is not None:
            statement = statement.where(Product.category == category)
        with self._sessions() as session:
            return [*session.scalars(statement)]

    def some(self, ids: Sequence[str]) -> dict[str, Product]:
        """Return those of the ids that are products."""
        with self._sessions() as session:
            found = session.scalars(select(Product).where(Product.id.in_(ids)))
            return {product.id: product for product in found}

    def of_hits(self, hits: Sequence[Hit]) -> list[tuple[Product, Hit]]:
        """Return the products that an answer of the library is about.

        A picture may be there a moment before its product is committed: it is left out.
        """
        products = self.some([Path(hit.path).stem for hit in hits])
        pairs = ((products.get(Path(hit.path).stem), hit) for hit in hits)
        return [(product, hit) for product, hit in pairs if product is not None]

    def search(self, text: str, k: int) -> list[Found]:
        """Return the products that fit words best, by their pictures and titles.

        Raises:
            QueryError: the words make no question.
        """
        if self.engine is None:
            return []
        return self._found(self.engine.search(text, k=k).hits)

    def similar(self, id_: str, k: int) -> list[Found]:
        """Return the products that look most like one, without it.

        Raises:
            UnknownProduct: there is none with this id.
        """
        product = self.get(id_)
        if self.engine is None:
            return []
        return self._found(self.engine.recommend(like=[product.picture], k=k).hits)

    def count(self) -> int:
        """Return how many products there are."""
        with self._sessions() as session:
            return session.scalar(select(func.count()).select_from(Product)) or 0

    def _found(self, hits: Sequence[Hit]) -> list[Found]:
        return [
            Found(
                product=ProductOut.model_validate(product), score=hit.score, probability=hit.match
            )
            for product, hit in self.of_hits(hits)
        ]

    def _write(self, product: NewProduct, jpeg: bytes) -> None:
        """Write picture and title; each file is replaced as a whole."""
        picture = self._pictures / picture_name(product.id)
        title = picture.with_suffix(".txt")
        for file, content in ((title, product.title.encode()), (picture, jpeg)):
            temporary = file.with_name(f".{file.name}.new")
            temporary.write_bytes(content)
            temporary.replace(file)


def _as_jpeg(content: bytes) -> bytes:
    """Return a picture as the shop keeps it: upright, on white, of moderate size."""
    try:
        picture = load_rgb(open_picture(content))
    except MediaError as error:
        raise UnusablePicture(
            f"The picture cannot be used: {error}. Give a JPEG, PNG, WebP or another usual picture."
        ) from error
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=90)
    return written.getvalue()
