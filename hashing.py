"""Ids and content hashes.

An id hashes the *request*, never the answer, so that a retry makes no new row and a resumed run has the
ids of an undisturbed one. A content hash names bytes, so that equal content has one name.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHORT = 8
"""Characters of an id that are shown to people; see `short_id` in the `answers` view."""


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is no JSON value.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def row_id(kind: str, /, **request: Any) -> str:
    """Return the id of a row: 128 bits of BLAKE2b over what was asked for, as UUID text."""
    digest = hashlib.blake2b(canonical([kind, request]), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest))


def content_hash(value: Any) -> str:
    """Return 32 hex characters that name a value; text and bytes are hashed as they are."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        data = value
    else:
        data = canonical(value)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def row_seed(identifier: str) -> int:
    """Return the 63-bit seed of the generator that belongs to one row."""
    digest = hashlib.blake2b(identifier.encode(), digest_size=8, person=b"row seed").digest()
    return int.from_bytes(digest, "big") >> 1


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(tensors: Iterable[tuple[str, Mapping[str, Any], bytes | memoryview]]) -> str:
    """Return the content hash of named tensors: (name, facts such as dtype and shape, raw bytes).

    The order in which they come makes no difference, only names, facts and bytes do.
    """
    parts = sorted(
        (name, hashlib.blake2b(raw, digest_size=16, key=_key(facts)).hexdigest())
        for name, facts, raw in tensors
    )
    return content_hash([list(part) for part in parts])


def _key(facts: Mapping[str, Any]) -> bytes:
    """Return facts as a BLAKE2b key, which has at most 64 bytes: longer ones are hashed, never cut."""
    text = canonical(dict(facts))
    return text if len(text) <= 64 else hashlib.blake2b(text, digest_size=64).digest()
