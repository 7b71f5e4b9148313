"""Find pictures with words, and words with pictures.

>>> import mmsearch
>>> library = mmsearch.open("photos")  # doctest: +SKIP
>>> library.search("a dog on a beach", k=10).hits  # doctest: +SKIP

Importing this package is cheap: every name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsearch.errors import MmsearchError
    from mmsearch.retrieval.client import AsyncClient, Client
    from mmsearch.retrieval.encoders import Encoder, load_encoder
    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.engine import open_engine as open
    from mmsearch.retrieval.evaluation import evaluate
    from mmsearch.retrieval.exchange.adoption import import_library
    from mmsearch.retrieval.exchange.export import export_library
    from mmsearch.retrieval.explanation import Explanation, explain
    from mmsearch.retrieval.ingest import index
    from mmsearch.retrieval.library_duplicates import find_duplicates
    from mmsearch.retrieval.library_evaluation import evaluate_library
    from mmsearch.retrieval.model_change import migrate
    from mmsearch.retrieval.recommend import Recommender
    from mmsearch.retrieval.request import SearchRequest
    from mmsearch.retrieval.schema import Hit, Results, Target
    from mmsearch.retrieval.signals import Signals
    from mmsearch.retrieval.tuning import tune
    from mmsearch.retrieval.watching import WatchEvent, WatchKind, watch

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Encoder",
    "Explanation",
    "Hit",
    "MmsearchError",
    "Recommender",
    "Results",
    "SearchEngine",
    "SearchRequest",
    "Signals",
    "Target",
    "WatchEvent",
    "WatchKind",
    "__version__",
    "evaluate",
    "evaluate_library",
    "explain",
    "export_library",
    "find_duplicates",
    "import_library",
    "index",
    "load_encoder",
    "migrate",
    "open",
    "tune",
    "watch",
]

_ORIGIN = {
    "AsyncClient": ("mmsearch.retrieval.client", "AsyncClient"),
    "Client": ("mmsearch.retrieval.client", "Client"),
    "Encoder": ("mmsearch.retrieval.encoders", "Encoder"),
    "Explanation": ("mmsearch.retrieval.explanation", "Explanation"),
    "Hit": ("mmsearch.retrieval.schema", "Hit"),
    "MmsearchError": ("mmsearch.errors", "MmsearchError"),
    "Recommender": ("mmsearch.retrieval.recommend", "Recommender"),
    "Results": ("mmsearch.retrieval.schema", "Results"),
    "SearchEngine": ("mmsearch.retrieval.engine", "SearchEngine"),
    "SearchRequest": ("mmsearch.retrieval.request", "SearchRequest"),
    "Signals": ("mmsearch.retrieval.signals", "Signals"),
    "Target": ("mmsearch.retrieval.schema", "Target"),
    "WatchEvent": ("mmsearch.retrieval.watching", "WatchEvent"),
    "WatchKind": ("mmsearch.retrieval.watching", "WatchKind"),
    "evaluate": ("mmsearch.retrieval.evaluation", "evaluate"),
    "evaluate_library": ("mmsearch.retrieval.library_evaluation", "evaluate_library"),
    "explain": ("mmsearch.retrieval.explanation", "explain"),
    "export_library": ("mmsearch.retrieval.exchange.export", "export_library"),
    "find_duplicates": ("mmsearch.retrieval.library_duplicates", "find_duplicates"),
    "import_library": ("mmsearch.retrieval.exchange.adoption", "import_library"),
    "index": ("mmsearch.retrieval.ingest", "index"),
    "load_encoder": ("mmsearch.retrieval.encoders", "load_encoder"),
    "migrate": ("mmsearch.retrieval.model_change", "migrate"),
    "open": ("mmsearch.retrieval.engine", "open_engine"),
    "tune": ("mmsearch.retrieval.tuning", "tune"),
    "watch": ("mmsearch.retrieval.watching", "watch"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562: whatever the name stands for)
    try:
        module, attribute = _ORIGIN[name]
    except KeyError:
        raise AttributeError(f"module 'mmsearch' has no attribute {name!r}") from None
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
