"""JSON that any name of a file can be in."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["Json"]


class Json(JSONResponse):
    """JSON in ASCII: names of files that are no valid text are escaped, and come back as they are.

    In UTF-8, half a character, which is how Python spells such a byte (PEP 383), has no encoding.
    """

    def render(self, content: Any) -> bytes:  # noqa: ANN401 (what JSON has)
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
