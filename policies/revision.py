"""The noun *revision*: one set of weights, named by its content, in a folder with a manifest.

A revision's id is the fingerprint of its tensors. Its canary is what it answers when it is asked, so
that an engine can be made to prove which weights it holds. Nothing here needs torch at import.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import StoreProblem
from ..hashing import file_sha256, fingerprint
from ..types import TokenIds

if TYPE_CHECKING:
    import torch

MANIFEST = "revision.json"
Verdict = Literal["ok", "inconclusive", "wrong"]
LogProbs = tuple[float, ...]

# Longer than a block of any paged cache (16 tokens), so that a stale block shows.
CANARY_TEXTS = (
    """The lighthouse keeper counted seven grey ships before breakfast, wrote their names in a book,
and went down the stairs to mend the net that the storm had torn.""",
    """To make a clear soup, roast the bones first. Then cover them with cold water, add an onion, and
wait: a soup that boils hard turns cloudy, and no sieve will help it afterwards.""",
    """Question: what is 17 + 26?
Answer: 43, because 17 + 20 = 37 and 37 + 6 = 43.
- "Is that all?"
- Yes; nothing else is asked for here, so nothing else is said.""",
    """def area(width: float, height: float) -> float:
    if width < 0 or height < 0:
        raise ValueError("a side is never negative")
    return width * height
""",
)
CANARY_SHORTEST, CANARY_LONGEST = 24, 64


@dataclass(frozen=True, slots=True)
class Canary:
    """What a revision answers when it is asked: fixed token sequences and their raw log-probs."""

    sequences: tuple[TokenIds, ...]
    logprobs: tuple[LogProbs, ...]
    """In nats, of token i + 1 given tokens up to i: each is one shorter than its sequence."""

    def distance(self, other: Canary) -> float:
        """Return the mean absolute difference of the log-probs, in nats a token.

        Raises:
            ValueError: the two were asked different sequences, so that nothing can be compared.
        """
        if self.sequences != other.sequences:
            raise ValueError("canaries of different sequences cannot be compared")
        here, there = (np.concatenate([np.array(x) for x in c.logprobs]) for c in (self, other))
        return float(np.mean(np.abs(here - there)))

    def ends(self, tokens: int) -> Canary:
        """Return the same with the log-probs of each sequence's last tokens alone."""
        return Canary(self.sequences, tuple(answer[-tokens:] for answer in self.logprobs))


@dataclass(frozen=True, slots=True)
class Revision:
    """One set of weights on disk."""

    id: str
    """Content hash of the weights; see `fingerprint_model`."""
    folder: Path
    parent: str | None
    """The revision that training began from; None for an initial one."""
    canary: Canary | None
    base: str | None = None
    """The revision that it is an adapter of; None for a whole model."""

    @classmethod
    def read(cls, folder: Path) -> Revision:
        """Read a revision from its manifest. Weights are not opened; see `verify_files`.

        Raises:
            StoreProblem: there is no manifest, or it cannot be read.
        """
        facts = _manifest(folder)
        try:
            canary = facts["canary"]
            return cls(
                id=str(facts["id"]),
                folder=folder,
                parent=facts["parent"],
                canary=None if canary is None else _canary(canary),
                base=facts["facts"].get("base"),
            )
        except (KeyError, TypeError) as error:
            raise StoreProblem(f"{folder / MANIFEST} is damaged: {error!r}") from error

    def facts(self) -> Mapping[str, Any]:
        """Return what was noted when the revision was published."""
        return dict(_manifest(self.folder)["facts"])

    def verify_files(self) -> None:
        """Compare every file with its SHA-256 in the manifest.

        Raises:
            StoreProblem: names the file that is missing, cut or changed.
        """
        for name, expected in _manifest(self.folder)["files"].items():
            file = self.folder / name
            if not file.is_file():
                raise StoreProblem(f"{file} is missing")
            size = file.stat().st_size
            if size != expected["size"]:
                raise StoreProblem(f"{file} has {size} bytes, {expected['size']} were written")
            if file_sha256(file) != expected["sha256"]:
                raise StoreProblem(f"{file} is not what was written: its SHA-256 differs")


def publish(
    staging: Path,
    root: Path,
    *,
    revision: str,
    parent: str | None,
    canary: Canary | None,
    facts: Mapping[str, Any],
) -> Revision:
    """Make a finished model folder visible as `root/<revision>`, whole or not at all.

    The manifest is written into `staging`, all of it is synced to disk, and one rename publishes it. If
    the revision is there already and verifies, that one stays and `staging` is removed; a damaged one
    gives way and is kept aside.

    Args:
        staging: the model folder, on the file system of `root`; it is used up.
        root: folder of all revisions.
        revision: content hash of the weights.
        parent: the revision that training began from.
        canary: what the revision answered in the process that made it.
        facts: what else is worth keeping, as JSON values.

    Raises:
        StoreProblem: a tensor holds NaN or an infinity, or there are no weights; nothing is published.
    """
    check_finite_files(staging)
    _write_manifest(staging, revision, parent, canary, facts)
    root.mkdir(parents=True, exist_ok=True)
    target = root / revision
    while True:
        if target.exists():
            if (there := _intact(target)) is not None:
                shutil.rmtree(staging)
                return there
            target.rename(root / f".damaged-{revision}-{uuid.uuid4().hex[:8]}")
        try:
            staging.rename(target)
        except OSError as error:
            # Another process published the same revision in between: look at that one.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue
        sync(root)
        return Revision.read(target)


def fingerprint_model(model: torch.nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return the content hash of a model's weights: names, dtypes, shapes and bytes.

    With a `dtype`, of what they would be in it.

    Tied tensors count once, under the name that comes first, because files hold them once: so the hash
    is the same before saving and after loading in the same dtype.
    """
    return fingerprint(
        raw_tensor(name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        for name, tensor in tensors_of(model)
    )


def check_finite(model: torch.nn.Module) -> None:
    """Refuse a model that holds NaN or an infinity.

    Raises:
        StoreProblem: names the tensor.
    """
    for name, tensor in tensors_of(model):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise StoreProblem(f"weights: tensor {name} holds NaN or an infinity")


def check_finite_files(folder: Path) -> None:
    """Refuse a folder whose safetensors hold NaN or an infinity, or that has none.

    Raises:
        StoreProblem: names the file and the tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StoreProblem(f"{folder} holds no *.safetensors")
    for file in files:
        for name, dtype, raw in _stored_tensors(file):
            if not _finite(dtype, raw):
                raise StoreProblem(f"{file}: tensor {name} holds NaN or an infinity")


def canary_sequences(tokenizer: Any) -> tuple[TokenIds, ...]:
    """Return the canary texts as this tokenizer's ids, 24 to 64 tokens each."""
    sequences = []
    for text in CANARY_TEXTS:
        ids: list[int] = []
        while len(ids) < CANARY_SHORTEST:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        sequences.append(tuple(ids[:CANARY_LONGEST]))
    return tuple(sequences)


def record_canary(model: torch.nn.Module, sequences: Sequence[TokenIds]) -> Canary:
    """Ask a causal language model for its log-probs of the canary sequences.

    Each sequence goes alone and unpadded, so that what is recorded depends on no batching.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    answers = []
    try:
        with torch.inference_mode():
            for sequence in sequences:
                ids = torch.tensor([sequence], device=device)
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                answer = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                answers.append(tuple(answer.tolist()))
    finally:
        model.train(was_training)
    return Canary(tuple(tuple(s) for s in sequences), tuple(answers))


def check_canary(
    measured: Canary, expected: Canary, parent: Canary | None, noise: float
) -> Verdict:
    """Say whether the weights that answered are the expected ones.

    `ok`: within 10 times the noise of the expected answers, and clearly (3 times) nearer to them than to
    the parent's. `inconclusive`: near the expected answers, but the parent's are just as near.

    Args:
        measured: what the engine answered.
        expected: what the revision answered where it was made.
        parent: what the weights answered that the engine held before.
        noise: mean absolute difference of two answers of one engine, in nats a token.
    """
    d_new = measured.distance(expected)
    if not d_new <= 10 * noise:  # also true of NaN
        return "wrong"
    if parent is None:
        return "ok"
    d_parent = measured.distance(parent)
    if d_parent > 3 * d_new and d_parent > 10 * noise:
        return "ok"
    return "inconclusive" if parent.distance(expected) < 10 * noise else "wrong"


def tensors_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's tensors; tied ones once, as in a file."""
    seen = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            yield name, tensor.detach()


def raw_tensor(name: str, tensor: torch.Tensor) -> tuple[str, Mapping[str, Any], memoryview]:
    """Return a tensor's name, facts and bytes, as `fingerprint` takes them."""
    import torch

    facts = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    # Bytes, because numpy has no bfloat16.
    raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return name, facts, raw.data


def _stored_tensors(file: Path) -> Iterator[tuple[str, str, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Yield name, dtype and bytes of the tensors in a safetensors file, mapped, not read."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")  # noqa: TRY301
            header = json.loads(opened.read(length))
        data = np.memmap(file, np.uint8, "r", 8 + length)
        for name, facts in header.items():
            if name != "__metadata__":
                begin, end = facts["data_offsets"]
                if end > data.size:
                    raise ValueError(f"tensor {name} lies beyond the end of the file")  # noqa: TRY301
                yield name, facts["dtype"], data[begin:end]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreProblem(f"{file} is no whole safetensors file: {error}") from error


def _finite(dtype: str, raw: np.ndarray[Any, np.dtype[np.uint8]], piece: int = 1 << 24) -> bool:
    # An exponent of all ones is NaN or an infinity; numpy cannot say so of bfloat16.
    masks: Mapping[str, tuple[Any, int]] = {
        "F64": (np.uint64, 0x7FF0 << 48),
        "F32": (np.uint32, 0x7F80 << 16),
        "F16": (np.uint16, 0x7C00),
        "BF16": (np.uint16, 0x7F80),
    }
    if dtype not in masks:
        return True
    kind, mask = masks[dtype]
    pieces = (raw[i : i + piece].view(kind) for i in range(0, raw.size, piece))
    return not any(bool(((p & kind(mask)) == mask).any()) for p in pieces)


def _write_manifest(
    folder: Path,
    revision: str,
    parent: str | None,
    canary: Canary | None,
    facts: Mapping[str, Any],
) -> None:
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f != folder / MANIFEST]
    manifest = {
        "format": 1,
        "id": revision,
        "parent": parent,
        "facts": dict(facts),
        "files": {
            file.relative_to(folder).as_posix(): {
                "sha256": file_sha256(file),
                "size": file.stat().st_size,
            }
            for file in files
        },
        "canary": None if canary is None else asdict(canary),
    }
    text = json.dumps(manifest, allow_nan=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for file in [*files, folder / MANIFEST]:
        sync(file)
    for inner in [*(f for f in folder.rglob("*") if f.is_dir()), folder]:
        sync(inner)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StoreProblem(f"{folder} is no revision: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise StoreProblem(f"{folder / MANIFEST} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"id", "parent", "files", "canary", "facts"} <= set(
        found
    ):
        raise StoreProblem(f"{folder / MANIFEST} is no manifest of a revision")
    return found


def _canary(stored: Mapping[str, Any]) -> Canary:
    return Canary(
        sequences=tuple(tuple(ids) for ids in stored["sequences"]),
        logprobs=tuple(tuple(values) for values in stored["logprobs"]),
    )


def _intact(folder: Path) -> Revision | None:
    try:
        revision = Revision.read(folder)
        revision.verify_files()
    except StoreProblem:
        return None
    return revision


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
