"""Libraries that a server has, asked like those on this machine (extra `client`).

>>> import mmsearch
>>> client = mmsearch.Client("http://127.0.0.1:8000")  # doctest: +SKIP
>>> client.search("a dog on a beach", k=10).hits  # doctest: +SKIP

It needs nothing of the engine: no vectors, no index, no model.
"""

from mmsearch.errors import MissingExtra

try:
    from mmsearch.retrieval.client.clients import AsyncClient, Client
except ImportError as error:
    raise MissingExtra(error.name or "httpx", "client") from error
from mmsearch.retrieval.client.answers import ServedItem

__all__ = ["AsyncClient", "Client", "ServedItem"]
