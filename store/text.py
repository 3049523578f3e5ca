"""Text that a DuckDB file can hold: valid Unicode."""

from __future__ import annotations

import json
import re

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def storable(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair, which UTF-8 cannot hold.

    Python makes such halves of file names and of JSON escapes. All other text stays as it is, NUL
    included.
    """
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def storable_json(text: str) -> str:
    """Return a JSON text whose strings are storable; the engine refuses an escaped half as malformed."""
    if not _ESCAPED_HALF.search(text):
        return storable(text)
    return storable(json.dumps(json.loads(text), ensure_ascii=False))
