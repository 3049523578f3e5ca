"""Models from the Hugging Face hub: a name is resolved to a commit, and only data is fetched.

Its client's own settings hold: `HF_ENDPOINT` (a mirror), `HF_HOME` and `HF_HUB_CACHE` (where files are kept),
`HF_TOKEN` or `hf auth login` (who asks), `HF_HUB_OFFLINE` (ask nobody).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BadInput, EnvironmentProblem
from ..hashing import file_sha256
from .disk import Need, require
from .model_folder import to_safetensors

TIMEOUT = 10.0
"""Seconds that the hub has to answer what a name stands for."""
COMMIT_LENGTH = 40
COMMIT = re.compile(rf"[0-9a-f]{{{COMMIT_LENGTH}}}")
_DATA = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_DEEPER = "*/*"
"""Files in folders of the model are of other programs."""
_UNAUTHORISED, _FORBIDDEN = 401, 403
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit as the hub describes it."""

    size: int
    sha256: str | None = None
    """Of large files alone."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """One commit of a model on the hub."""

    name: str
    commit: str
    licence: str
    files: Mapping[str, HubFile] = field(default_factory=dict)
    """Those that a model needs; empty where nobody was asked."""

    @property
    def weights(self) -> int:
        """Bytes of its safetensors."""
        return sum(f.size for name, f in self.files.items() if name.endswith(".safetensors"))

    def missing(self) -> int:
        """Return the bytes that a download has yet to bring."""
        return sum(
            f.size for n, f in self.files.items() if _cached(self.name, n, self.commit) is None
        )

    def need(self) -> Need:
        """Return what a download takes of which disk."""
        from huggingface_hub import constants

        return Need(Path(constants.HF_HUB_CACHE), self.missing(), "to download", "HF_HUB_CACHE")


def find(name: str, revision: str | None) -> HubModel:
    """Find the commit that a name stands for: of the hub, or offline of its cache; no weights are fetched.

    Raises:
        BadInput: there is no such model or revision, it is gated, or it has no safetensors.
        EnvironmentProblem: the hub cannot be reached, or lets nobody in.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return _held(name, revision)
    try:
        with _explained(name, revision):
            info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT, files_metadata=True)
    except _Unreachable:
        if revision and COMMIT.fullmatch(revision) and _commit_in_cache(name, revision):
            return HubModel(name, revision, "")  # the same files, whoever is asked
        raise
    files = {file.rfilename: _described(file) for file in info.siblings or [] if _is_data(file)}
    if not any(file.endswith(".safetensors") for file in files):
        what = "this model has no safetensors on the hub"
        raise BadInput.at(name, what, to_safetensors(name))
    card: Any = info.card_data
    return HubModel(name, str(info.sha), str(getattr(card, "license", None) or ""), files)


def fetch(model: HubModel) -> Path:
    """Download a commit's weights, config and tokenizer, and return the folder; code stays behind.

    Raises:
        BadInput: the model is gated.
        EnvironmentProblem: the hub cannot be reached, or sent other bytes than it names.
    """
    from huggingface_hub import snapshot_download

    with _explained(model.name, model.commit):
        held = snapshot_download(
            model.name,
            revision=model.commit,
            allow_patterns=list(_DATA),
            ignore_patterns=[_DEEPER],
        )
    _verify(Path(held), model)
    return Path(held)


@lru_cache
def bring(name: str, commit: str) -> Path:
    """Return the folder of a commit, fetched where it must be; asks once in a process.

    Raises:
        BadInput: there is no such model or commit, or it is gated.
        EnvironmentProblem: the hub cannot be reached, or the disk has no room.
    """
    model = find(name, commit)
    require(name, [model.need()])
    return fetch(model)


def _verify(folder: Path, model: HubModel) -> None:
    """Compare the large files with the hashes that the hub names; its client looks at their size alone."""
    for name, told in model.files.items():
        file = folder / name
        if told.sha256 is not None and file.is_file() and file_sha256(file) != told.sha256:
            file.resolve().unlink()
            raise EnvironmentProblem(
                f"{model.name}: {file} is not what the hub holds (its SHA-256 differs); "
                "it was removed: run the command again to fetch it anew"
            )


def _is_data(file: Any) -> bool:
    name = str(file.rfilename)
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _DATA)


def _described(file: Any) -> HubFile:
    large: Any = file.lfs
    return HubFile(int(file.size or 0), str(large.sha256) if large else None)


# -- offline


def _held(name: str, revision: str | None) -> HubModel:
    """Return the commit that the cache holds of a name.

    Raises:
        EnvironmentProblem: it holds none; names the folder where it would lie.
    """
    with _explained(name, revision):
        commit = _commit_in_cache(name, revision)
    if commit is None:
        where, way = _there(name, revision)
        way = way or f"bring that folder from a machine that ran `hf download {name}`"
        raise EnvironmentProblem(f"{name}: HF_HUB_OFFLINE is set and {where}; unset it, or {way}")
    return HubModel(name, commit, "")


def _there(name: str, revision: str | None) -> tuple[str, str]:
    """Say what the cache holds of a name, and how to have that; the second is empty where it holds nothing."""
    place = cache_folder(name, None) / "snapshots"
    commits = sorted(folder.name for folder in place.iterdir()) if place.is_dir() else []
    if not commits or revision in commits:
        return f"{cache_folder(name, revision)} does not hold it", ""
    return f"{place} holds {' and '.join(commits)}", f"write {name}@{commits[-1]}"


def cache_folder(name: str, revision: str | None) -> Path:
    """Return where the hub's client keeps a model's files."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model")
    place = Path(constants.HF_HUB_CACHE) / folder
    return place / "snapshots" / revision if revision and COMMIT.fullmatch(revision) else place


def _commit_in_cache(name: str, revision: str | None) -> str | None:
    config = _cached(name, "config.json", revision)
    return None if config is None else config.parent.name


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(name, file, constants.HF_HUB_CACHE, revision)
    return Path(found) if isinstance(found, str) else None


# -- what the client raises


class _Unreachable(EnvironmentProblem):
    """Nobody answered."""


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    from httpx import HTTPError
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        accept = f"accept its terms at https://huggingface.co/{name}, then {_LOGIN}"
        raise BadInput.at(name, "this model is gated", accept) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput.at(name, f"the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        hint = f"check the spelling; for a private model {_LOGIN}"
        what = "the hub has no such model, or it is private, and there is no such folder here"
        raise BadInput.at(name, what, hint) from error
    except errors.HFValidationError as error:
        raise BadInput.at(name, "the hub has no such names", "write owner/name") from error
    except errors.HfHubHTTPError as error:
        raise _answered(name, error.response.status_code) from error
    except (errors.LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        where, way = _there(name, revision)
        raise _Unreachable(
            f"{name}: the Hugging Face hub cannot be reached at {constants.ENDPOINT}, and {where}; "
            f"{way or 'go online'}, set HF_ENDPOINT to a mirror, name a folder that holds the model, or use smollm2-135m or tiny"
        ) from error


def _answered(name: str, status: int) -> EnvironmentProblem:
    """Say what an answer means that is no answer; what the server wrote is not repeated."""
    from huggingface_hub import constants

    who = f"{name}: {constants.ENDPOINT}"
    if status == _UNAUTHORISED:
        return EnvironmentProblem(
            f"{who} does not take the token (401): it is wrong or old; {_LOGIN}"
        )
    if status == _FORBIDDEN:
        return EnvironmentProblem(
            f"{who} does not let this token read it (403): accept the model's terms at "
            f"https://huggingface.co/{name}, give the token the right to read it, or {_LOGIN}"
        )
    return EnvironmentProblem(f"{who} answers with status {status}; try again later")
