"""A server under two names: a pool of itself."""

from __future__ import annotations


def two_names(url: str) -> list[str]:
    """Return a server as a pool of itself: ids hash that it is one, and not the port that it happens to have."""
    return [url, url.replace("127.0.0.1", "localhost")] if "127.0.0.1" in url else [url]
