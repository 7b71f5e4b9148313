"""What an answer calls the pictures that were asked with: `NAME/ID`, as the client did.

Engines tell files by their paths, which are this machine's and nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["named"]


def named(
    answer: dict[str, Any],
    like: Sequence[str],
    dislike: Sequence[str] = (),
    history: Sequence[str] = (),
) -> dict[str, Any]:
    """Return an answer whose question names pictures by references.

    Args:
        answer: the object of `query --json`.
        like: references of the pictures that were asked with, in the engine's order, which those
            that were sent follow.
        dislike: those of a taste's that are not liked.
        history: those of a taste's history.
    """
    query = answer["query"]
    if isinstance(query, str):
        return answer
    if "basis" in query:
        # The same picture may have been seen more than once.
        seen = [each["item"] for each in query["history"]]
        called = dict(zip(seen, history, strict=True))
        renamed = query | {
            "like": list(like),
            "dislike": list(dislike),
            "history": [each | {"item": called[each["item"]]} for each in query["history"]],
            "ignored": [called[name] for name in query["ignored"]],
        }
    elif "parts" in query:
        left = iter(like)
        renamed = query | {
            "parts": [
                part | {"image": next(left, part["image"])} if "image" in part else part
                for part in query["parts"]
            ]
        }
    else:
        renamed = query | {"image": next(iter(like), query["image"])}
    return answer | {"query": renamed}
