"""Ids and hashes: they depend on what was asked, on nothing else."""

from __future__ import annotations

import hashlib
import math
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from redistill.hashing import canonical, content_hash, file_sha256, fingerprint, row_id, row_seed

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), VALUES, max_size=5)


def _shuffled(value: Any, reverse: bool) -> Any:
    """Return an equal value whose mappings were filled in another order."""
    if isinstance(value, dict):
        items = [(k, _shuffled(v, reverse)) for k, v in value.items()]
        return dict(reversed(items) if reverse else items)
    return [_shuffled(v, reverse) for v in value] if isinstance(value, list) else value


@given(REQUESTS)
def test_row_id_does_not_depend_on_key_order(request_: dict[str, Any]) -> None:
    """The order in which arguments and mappings were written changes no id."""
    assert row_id("k", **request_) == row_id("k", **_shuffled(request_, reverse=True))


@given(REQUESTS, WORDS, WORDS)
def test_row_id_differs_by_kind(request_: dict[str, Any], one: str, other: str) -> None:
    """Rows of two kinds never share an id, even with equal requests."""
    assume(one != other)
    assert row_id(one, **request_) != row_id(other, **request_)


@given(REQUESTS, REQUESTS)
def test_row_id_differs_by_request(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Another request is another id, and the same one is the same."""
    assert (row_id("k", **one) == row_id("k", **other)) == (canonical(one) == canonical(other))


@given(REQUESTS)
def test_row_id_is_a_uuid(request_: dict[str, Any]) -> None:
    """An id is a UUID in its usual text, as the column wants it."""
    identifier = row_id("k", **request_)
    assert str(uuid.UUID(identifier)) == identifier


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_canonical_refuses_what_json_cannot_say(number: float) -> None:
    """NaN and infinities have no canonical text, so no id hangs on them."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        row_id("k", value=[number])
    with pytest.raises(TypeError):
        canonical({"path": Path()})


@given(st.text())
def test_any_text_has_a_hash(text: str) -> None:
    """Half a surrogate pair does not stop a hash; equal text and bytes are one content."""
    assert len(content_hash(text)) == 32
    assert content_hash(text) == content_hash(text.encode("utf-8", "surrogatepass"))
    row_id("k", text=text)


@given(st.text())
def test_row_seed_fits_63_bits(identifier: str) -> None:
    """A seed is a non-negative 63-bit number, so every generator takes it."""
    identifier = identifier.encode("utf-8", "replace").decode()
    assert 0 <= row_seed(identifier) < 2**63
    assert row_seed(identifier) == row_seed(identifier)


def test_row_seeds_use_their_whole_range() -> None:
    """Seeds of neighbouring ids are spread evenly: no half of the range is empty."""
    seeds = [row_seed(row_id("k", slot=slot)) for slot in range(1000)]
    assert len(set(seeds)) == 1000
    assert 400 < sum(seed >> 62 for seed in seeds) < 600


@given(st.binary(max_size=3000))
def test_file_hash_is_sha256(tmp_path: Path, data: bytes) -> None:
    """The hash of a file is the plain SHA-256 of its bytes."""
    file = tmp_path / "file"
    file.write_bytes(data)
    assert file_sha256(file) == hashlib.sha256(data).hexdigest()


TENSORS = st.dictionaries(WORDS, st.binary(max_size=16), min_size=1, max_size=5)


@given(TENSORS, st.randoms(use_true_random=False))
def test_fingerprint_ignores_order(tensors: dict[str, bytes], random: Any) -> None:
    """Tensors may come in any order."""
    named = [(name, {"dtype": "F32"}, raw) for name, raw in tensors.items()]
    mixed = named.copy()
    random.shuffle(mixed)
    assert fingerprint(named) == fingerprint(mixed)


@given(TENSORS)
def test_fingerprint_sees_every_byte_and_name(tensors: dict[str, bytes]) -> None:
    """Another byte, name or fact is another fingerprint."""
    named = [(name, {"dtype": "F32"}, raw) for name, raw in tensors.items()]
    name, facts, raw = named[0]
    for other in (
        (name, facts, raw + b"\0"),
        (name + "x", facts, raw),
        (name, {"dtype": "I32"}, raw),
    ):
        assert fingerprint(named) != fingerprint([other, *named[1:]])


def test_fingerprint_sees_facts_beyond_64_bytes() -> None:
    """A key of BLAKE2b has 64 bytes; facts that differ only later still count."""
    long = "x" * 100
    one = fingerprint([("w", {"name": long, "shape": [2, 3]}, b"raw")])
    assert one != fingerprint([("w", {"name": long, "shape": [3, 2]}, b"raw")])
