"""A model hub of our own on this machine: as much of the Hugging Face hub as finding and fetching a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOKEN, OLD_TOKEN = "hf_good", "hf_old"
"""One that the hub knows, and one that it does not know any more."""
OPEN = ("owner/name", SMOL, "owner/pickle", "owner/huge", "owner/other-bytes")
HUGE = 10**18
"""Bytes that no disk has."""


class FakeHub(ThreadingHTTPServer):
    """Serves one folder under several names, each with its own fault; threads do not outlive it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        """Every path that was asked for."""

    @property
    def address(self) -> str:
        """What `HF_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """Return the names of the files that were asked for."""
        return [path.rpartition("/")[2] for path in self.asked if "/resolve/" in path]


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    """Serve a folder for as long as a test likes."""
    hub = FakeHub(folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"))
            return
        name, _, file = path.lstrip("/").partition(f"/resolve/{COMMIT}/")
        if name in OPEN and (self.server.folder / file).is_file():
            data = (self.server.folder / file).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self._reply(200, data if body else b"", headers, len(data))
        else:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _model(self, path: str) -> None:
        name, listing, _ = path.partition(f"/tree/{COMMIT}")
        if listing:
            self._json([_entry(file) for file in sorted(self.server.folder.iterdir())])
            return
        name, _, revision = path.partition("/revision/")
        if refused := self._refusal(name):
            status, headers = refused
            self._reply(status, b"", headers)
        elif revision not in ("", "main", COMMIT):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [_sibling(name, file) for file in sorted(self.server.folder.iterdir())]
            if name == "owner/pickle":
                files = [{"rfilename": n, "size": 9} for n in ("config.json", "pytorch_model.bin")]
            files += [{"rfilename": "modeling_evil.py", "size": 9}]
            facts = {"id": name, "sha": COMMIT, "siblings": files, "cardData": {"license": "mit"}}
            self._json(facts)

    def _refusal(self, name: str) -> tuple[int, dict[str, str]] | None:
        """Return status and headers with which the hub refuses a name; None where it does not."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == OLD_TOKEN:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        refused = {
            "owner/gated": (403 if token else 401, {"X-Error-Code": "GatedRepo"}),
            "owner/private": (401, {"X-Error-Code": "RepoNotFound"}),
            "owner/forbidden": (403, {"X-Error-Message": "the token may not read"}),
            "owner/busy": (503, {}),
        }
        if name == "owner/private" and token == TOKEN:
            return None
        if name in (*OPEN, *refused):
            return refused.get(name)
        return 404, {"X-Error-Code": "RepoNotFound"}

    def _json(self, facts: Any) -> None:
        self._reply(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _reply(
        self, status: int, data: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        length = len(data) if length is None else length
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def _entry(file: Path) -> dict[str, Any]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"}


def _sibling(name: str, file: Path) -> dict[str, Any]:
    """Describe a file as the hub does; of weights it knows the SHA-256."""
    size = file.stat().st_size
    told: dict[str, Any] = {"rfilename": file.name, "size": size, "blobId": "0"}
    if file.suffix == ".safetensors":
        told["size"] = size = HUGE if name == "owner/huge" else size
        digest = "0" * 64 if name == "owner/other-bytes" else _sha256(file)
        told["lfs"] = {"size": size, "sha256": digest, "pointerSize": 134}
    return told


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
