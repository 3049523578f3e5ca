"""Models from the Hugging Face hub: a name is resolved to a commit, and only data is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, EnvironmentProblem
from .model_folder import TO_SAFETENSORS

TIMEOUT = 10.0
"""Seconds that the hub has to answer what a name stands for."""
_DATA = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class HubModel:
    """One commit of a model on the hub."""

    name: str
    commit: str
    licence: str


def find(name: str, revision: str | None) -> HubModel:
    """Ask the hub for the commit that a name stands for; no weights are fetched.

    Raises:
        BadInput: there is no such model or revision, it is gated, or it has no safetensors.
        EnvironmentProblem: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(name, revision):
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    files = [file.rfilename for file in info.siblings or []]
    if not any(file.endswith(".safetensors") for file in files):
        raise BadInput.at(name, "this model has no safetensors on the hub", TO_SAFETENSORS)
    card: Any = info.card_data
    return HubModel(name, str(info.sha), str(getattr(card, "license", None) or ""))


def fetch(model: HubModel) -> Path:
    """Download a commit's weights, config and tokenizer, and return the folder; code stays behind.

    Raises:
        BadInput: the model is gated.
        EnvironmentProblem: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _explained(model.name, model.commit):
        held = snapshot_download(model.name, revision=model.commit, allow_patterns=list(_DATA))
    return Path(held)


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    from httpx import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        accept = f"accept its terms at https://huggingface.co/{name}, then run `hf auth login`"
        raise BadInput.at(name, "this model is gated", accept) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput.at(name, f"the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; for a private model run `hf auth login` first"
        raise BadInput.at(name, "the hub has no such model, or it is private", hint) from error
    except errors.HFValidationError as error:
        raise BadInput.at(name, "the hub has no such names", "write owner/name") from error
    except (errors.LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        raise EnvironmentProblem(
            f"{name}: the Hugging Face hub cannot be reached; go online, or name a folder that "
            "holds the model, or use smollm2-135m or tiny"
        ) from error
