"""Templates filled: what they are given of answers and pictures, and how that becomes HTML."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from mmsearch.retrieval.addresses import shown
from mmsearch.retrieval.confidence import confidence
from mmsearch.retrieval.contact_sheet import readable
from mmsearch.retrieval.web.assets import assets, templates

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog.items import Item
    from mmsearch.retrieval.web.shelf import Served

__all__ = ["drawn", "hit_view", "in_page", "item_view"]


def drawn(template: str, **values: object) -> str:
    """Return a template of the page, filled; every value is escaped."""
    return _environment().get_template(template).render(**values)


def in_page(html: str) -> str:
    """Return drawn HTML without the space around it."""
    return html.strip()


def hit_view(hit: dict[str, Any], *, several: bool) -> dict[str, Any]:
    """Return what a template shows of one answer.

    Args:
        hit: as in `Answer.results`.
        several: whether there are several libraries, so that it matters which one it is of.
    """
    path = readable(hit["path"])
    item = f"{hit['library']}/{hit['id']}"
    group = hit.get("group")
    return {
        "item": item,
        "rank": hit["rank"],
        "path": path,
        "name": path.rpartition("/")[2],
        "library": hit["library"] if several else None,
        "match": hit.get("p_match"),
        "confidence": hit.get("confidence"),
        "score": hit["score"],
        "day": (hit["taken"] or "")[:10],
        "others": 0 if group is None else group["size"] - 1,
        "stack": []
        if group is None
        else [f"{hit['library']}/{id_}" for id_ in group["ids"] if id_ is not None],
    }


def item_view(served: Served, item: Item, *, there: bool, here: bool) -> dict[str, Any]:
    """Return what a template shows of one picture.

    Args:
        served: its library.
        item: what is known of it.
        there: whether its file is still there.
        here: whether who looks at it sits at this machine, where its folder means something.
    """
    picture = item.picture
    path = readable(picture.path)
    place = None
    if picture.latitude is not None and picture.longitude is not None:
        place = f"{picture.latitude:.5f}, {picture.longitude:.5f}"
    return {
        "library": served.name,
        "path": path,
        "file": readable(shown(served.root / picture.path)) if here else path,
        "name": path.rpartition("/")[2],
        "there": there,
        "taken": None if picture.taken_at is None else f"{picture.taken_at:%Y-%m-%d %H:%M}",
        "camera": None if picture.camera is None else readable(picture.camera),
        "width": picture.width,
        "height": picture.height,
        "bytes": _bytes(picture.size),
        "format": picture.format,
        "place": place,
        "captions": [
            {"text": readable(caption.text), "written": not caption.generated}
            for caption in item.captions
        ],
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader(templates()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "asset": assets().url,
        "picture": _picture,
        "confidence": confidence,
        "icon": _icon,
    }
    environment.filters |= {"percent": lambda share: f"{100 * share:.0f} %"}
    return environment


def _picture(item: str, what: str, **asked: object) -> str:
    """Return the address of a picture, or of its `thumbnail`, `original` or `heat`."""
    library, _, id_ = item.rpartition("/")
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in asked.items())
    return f"/api/v1/items/{quote(library, safe='')}/{id_}/{what}" + (f"?{query}" if query else "")


def _icon(name: str) -> Markup:
    """Return a picture of `static/icons.svg`; it says nothing to who cannot see it."""
    return Markup('<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>').format(
        assets().url("icons.svg"), name
    )


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
