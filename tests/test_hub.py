"""Models from the hub, over real HTTP: who may read, where files go, and what is asked before anything is fetched.

Each test runs its own process, because the hub's client reads its environment once, when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
from fake_hub import COMMIT, HUGE, OLD_TOKEN, TOKEN, FakeHub, serving

from redistill.testing.tiny import make_tiny_model

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_CHECK = """
import sys
from pathlib import Path
from redistill.errors import RedistillError
from redistill.policies import catalog, hub
what, student, cache = sys.argv[1:]
try:
    if what == "bring":
        print(hub.bring(*student.split("@")))
    elif what == "check":
        catalog.check(student, Path(cache))
    else:
        print(catalog.resolve(student, cache=Path(cache), say=print).note)
except RedistillError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@dataclass
class Person:
    """Somebody with a home, who asks for models in a process of its own."""

    home: Path
    endpoint: str

    def __call__(self, what: str, student: str, **environment: str) -> tuple[int, list[str]]:
        """Return the exit code and the lines that were said."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        kept |= {"HF_HOME": str(self.home / "hf"), "HF_ENDPOINT": self.endpoint, **environment}
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHECK, what, student, str(self.home / "cache")],
            env=kept,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """Serve a tiny model under several names."""
    with serving(make_tiny_model(tmp_path_factory.mktemp("hub") / "model")) as server:
        yield server


@pytest.fixture
def person(hub: FakeHub, tmp_path: Path) -> Person:
    """Return somebody who has fetched nothing yet, with the hub of this test as a mirror."""
    hub.asked.clear()
    return Person(tmp_path, hub.address)


@pytest.mark.parametrize(
    ("name", "token", "code", "said"),
    [
        ("owner/gated", "", 2, "this model is gated; accept its terms at https://huggingface.co/"),
        ("owner/gated", TOKEN, 2, f"owner/gated, then {LOGIN}"),
        ("owner/private", "", 2, f"for a private model {LOGIN}"),
        ("owner/name", OLD_TOKEN, 4, f"does not take the token (401): it is wrong or old; {LOGIN}"),
        ("owner/forbidden", TOKEN, 4, "does not let this token read it (403): accept the model's"),
        ("owner/busy", "", 4, "answers with status 503; try again later"),
        ("owner/none", "", 2, "or it is private, and there is no such folder here; check"),
    ],
)
def test_who_may_not_read_is_told_what_to_do(
    person: Person, name: str, token: str, code: int, said: str
) -> None:
    """401 and 403 are one line: what to accept, and how to log in; no token is repeated."""
    found, lines = person("check", name, **({"HF_TOKEN": token} if token else {}))
    assert (found, len(lines)) == (code, 1)
    assert said in lines[0]
    assert token == "" or token not in lines[0]


def test_a_token_opens_a_private_model(person: Person) -> None:
    """Who is logged in by HF_TOKEN may read what others may not."""
    assert person("check", "owner/private", HF_TOKEN=TOKEN) == (0, [])


def test_a_model_comes_from_the_mirror_into_the_folder_that_is_named(
    person: Person, hub: FakeHub, tmp_path: Path
) -> None:
    """A name becomes a commit; HF_ENDPOINT and HF_HUB_CACHE are honoured, and offline the copy serves."""
    place = tmp_path / "elsewhere"
    code, lines = person("resolve", "owner/name", HF_HUB_CACHE=str(place))
    assert code == 0
    assert lines[0].startswith(f"fetching owner/name at {COMMIT[:8]} (")
    assert lines[0].endswith(f" from the hub into {place}, once")
    assert lines[-1] == f"from owner/name@{COMMIT}"
    assert (place / "models--owner--name" / "snapshots" / COMMIT / "config.json").is_file()
    assert not (tmp_path / "hf" / "hub").exists()
    assert "modeling_evil.py" not in hub.fetched()
    person.home = tmp_path / "second"  # another cache of ours, the hub's cache as it is
    hub.asked.clear()
    offline = {"HF_HUB_CACHE": str(place), "HF_HUB_OFFLINE": "1"}
    code, [line] = person("check", "owner/name", **offline)
    assert code == 4
    assert f"holds {COMMIT}; unset it, or write owner/name@{COMMIT}" in line
    refs = place / "models--owner--name" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(COMMIT)  # as `hf download owner/name` leaves it
    assert person("check", "owner/name", **offline) == (0, [])
    code, lines = person("resolve", f"owner/name@{COMMIT}", **offline)
    assert (code, lines[-1]) == (0, f"from owner/name@{COMMIT}")
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_u33_offline_names_the_folder_that_is_expected(
    person: Person, tmp_path: Path, revision: str
) -> None:
    """Who works offline is told where the model would have to lie."""
    code, [line] = person("check", f"owner/name{revision}", HF_HUB_OFFLINE="1")
    where = tmp_path / "hf" / "hub" / "models--owner--name"
    where = where / "snapshots" / COMMIT if revision else where
    assert code == 4
    assert f"HF_HUB_OFFLINE is set and {where} does not hold it" in line


def test_u33_an_unreachable_hub_is_named_with_the_folder(person: Person, tmp_path: Path) -> None:
    """Who is offline without having said so is told which address was tried, and what is here."""
    person.endpoint = "http://127.0.0.1:1"
    code, [line] = person("check", "owner/name")
    assert code == 4
    assert "cannot be reached at http://127.0.0.1:1, and " in line
    assert f"{tmp_path / 'hf' / 'hub' / 'models--owner--name'} does not hold it" in line


def test_room_is_asked_for_before_anything_is_fetched(
    person: Person, hub: FakeHub, tmp_path: Path
) -> None:
    """A model larger than the disk is refused with what it needs, where, and what is free."""
    for what in ("check", "resolve"):
        code, [line] = person(what, "owner/huge")
        assert code == 4
        assert f"needs {HUGE / 1e12:.1f} TB to download in {tmp_path / 'hf' / 'hub'} and" in line
        assert f"{2 * HUGE / 1e12:.1f} TB as float32 in {tmp_path / 'cache'}" in line
        assert "are free there; make room, or name another disk by HF_HUB_CACHE or REDI" in line
    assert hub.fetched() == []


def test_a_judge_of_the_hub_comes_the_same_way(
    person: Person, hub: FakeHub, tmp_path: Path
) -> None:
    """A reward model is fetched by its commit, with room asked for, and is there without the hub afterwards."""
    code, [line] = person("bring", f"owner/huge@{COMMIT}")
    assert code == 4
    assert "TB to download in" in line
    assert hub.fetched() == []
    assert person("bring", f"owner/gated@{COMMIT}")[0] == 2
    code, [folder] = person("bring", f"owner/name@{COMMIT}")
    assert code == 0
    assert (Path(folder) / "model.safetensors").is_file()
    person.endpoint = "http://127.0.0.1:1"
    assert person("bring", f"owner/name@{COMMIT}") == (0, [folder])


def test_u38_other_bytes_than_the_hub_names_are_refused(person: Person, tmp_path: Path) -> None:
    """A download of the right size with other bytes is removed, so that the next one can be right."""
    code, lines = person("resolve", "owner/other-bytes")
    assert code == 4
    assert "is not what the hub holds (its SHA-256 differs); it was removed" in lines[-1]
    assert not [f for f in (tmp_path / "hf").rglob("*.safetensors") if f.exists()]
