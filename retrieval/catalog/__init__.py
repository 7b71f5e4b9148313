"""The catalog: one SQLite file, or one schema on PostgreSQL, that holds the truth about a library.

Files, captions, their vectors (fp16), problems, the encoder's fingerprint and what `tune` learned.
Everything else on disk (FAISS files, what rerankers are spared) is derived from it. A batch's rows
and vectors are written in one transaction, so a vector without its file, or the reverse, cannot
exist.
"""

from __future__ import annotations

from mmsearch.retrieval.catalog.address import Address
from mmsearch.retrieval.catalog.captions import Undescribed
from mmsearch.retrieval.catalog.encoders import EncoderRow, UnembeddedFile
from mmsearch.retrieval.catalog.known import KnownFile, KnownProblem
from mmsearch.retrieval.catalog.library_row import AdapterRow, Counts, LibraryRow
from mmsearch.retrieval.catalog.lookup import FileRow
from mmsearch.retrieval.catalog.regions import RegionStore
from mmsearch.retrieval.catalog.store import Catalog
from mmsearch.retrieval.catalog.transaction import Transaction
from mmsearch.retrieval.catalog.word_search import KeptWords
from mmsearch.retrieval.catalog.words import told_by_name

__all__ = [
    "AdapterRow",
    "Address",
    "Catalog",
    "Counts",
    "EncoderRow",
    "FileRow",
    "KeptWords",
    "KnownFile",
    "KnownProblem",
    "LibraryRow",
    "RegionStore",
    "Transaction",
    "Undescribed",
    "UnembeddedFile",
    "told_by_name",
]
