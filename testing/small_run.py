"""A whole small run without a model: every table filled, every number derived as the loop derives it.

For tests of what reads a run: queries, reports, `doctor`. The answers are made up by a rule, the
judgements are the real verifier's, the decisions the real bootstrap's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..agents.judge import JudgeTask
from ..agents.judges.program import Verifier
from ..agents.prompts import load_prompts
from ..agents.recipe import Recipe, load_recipe
from ..hashing import content_hash, row_id
from ..policies.policy import Sampling
from ..policies.revision import publish
from ..store.analysis import PAIRED, Difference, paired_bootstrap, paired_parameters
from ..store.facts import champion, prompt_rows
from ..store.store import Row, Rows, Store, content, now
from ..types import Completion, Prompt
from . import small_rows
from .fakes_trainer import write_fake

_SKILL = (0.25, 0.55, 0.57, 0.75, 0.6)
"""Share of right answers of the initial student and of each round's challenger."""


def make_run(
    folder: Path,
    *,
    rounds: int = 2,
    finished: bool = True,
    failed_round: int | None = None,
    spice: str = "",
) -> Path:
    """Write a run and return its folder.

    Args:
        folder: the run's folder; its name is the run's name.
        rounds: rounds that are done, at most 4. The first is promoted, the second is not.
        finished: whether the test split was answered and the gain written.
        failed_round: a round whose training publishes nothing.
        spice: text put at the end of every wrong answer and of one prompt, for tests of escaping.
    """
    if rounds >= len(_SKILL):
        raise ValueError(f"at most {len(_SKILL) - 1} rounds")
    prompts = folder / "inputs" / "0-prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row) for row in small_rows.small_prompts(spice))
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = small_rows.RECIPE.replace("NAME", folder.name).replace("ROUNDS", str(max(1, rounds)))
    recipe = load_recipe(text, "recipe.yaml", base=folder)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    store = Store(folder, list(recipe.judges()))
    try:
        _Writer(store, recipe, spice).write(rounds, finished=finished, failed_round=failed_round)
    finally:
        store.close()
    return folder


@dataclass(slots=True)
class _Writer:
    """Writes a run chunk by chunk, as the loop does."""

    store: Store
    recipe: Recipe
    spice: str
    _initial: str = ""

    def write(self, rounds: int, *, finished: bool, failed_round: int | None) -> None:
        """Write everything, in the order in which it happens."""
        self._opening()
        self._measure(0, "baseline", "heldout", self._initial)
        for round_ in range(1, rounds + 1):
            self._round(round_, failed=round_ == failed_round)
        if finished:
            before = self._measure(0, "test_initial", "test", self._initial)
            after = self._measure(rounds, "test_champion", "test", champion(self.store))
            self._gain(rounds, before, after)

    def _prompts(self, split: str) -> list[Prompt]:
        prompts = load_prompts(self.recipe.prompts, self.recipe.base, self.recipe.seed)
        return [prompt for prompt in prompts if prompt.split == split]

    def _opening(self) -> None:
        self._initial = self._publish(0, None)
        prompts = load_prompts(self.recipe.prompts, self.recipe.base, self.recipe.seed)
        run = {
            "id": row_id("run", key=self.recipe.key),
            "name": self.recipe.name,
            "key": self.recipe.key,
            "seed": self.recipe.seed,
            "recipe": json.dumps(self.recipe.resolved()),
            "student": self._initial,
            "redistill_version": __version__,
            "created_at": now(),
        }
        rows = {"run": [run], "revision": [self._revision_row(self._initial, 0, None, None)]}
        self.store.commit({**rows, **prompt_rows(prompts)}, round=0, step="begin", chunk=0)

    def _publish(self, round_: int, parent: str | None) -> str:
        root = self.store.folder / "revisions"
        staging = root / ".staging"
        shutil.rmtree(staging, ignore_errors=True)
        skill = _SKILL[round_]
        revision = write_fake(staging, {"name": "small", "skill": skill, "round": round_})
        publish(staging, root, revision=revision, parent=parent, canary=None, facts={})
        return revision

    def _revision_row(self, revision: str, round_: int, parent: str | None, job: str | None) -> Row:
        return {
            "id": revision,
            "round": round_,
            "parent": parent,
            "folder": f"revisions/{revision}",
            "training_run_id": job,
            "created_at": now(),
        }

    # -- one round

    def _round(self, round_: int, *, failed: bool) -> None:
        start = champion(self.store)
        self._begin(round_, start)
        prompts = self._prompts("train")[:24]
        sampling = Sampling(0.7, 1.0, 0, 24)
        answers = self._answer((round_, "sample"), prompts, start, sampling, 4)
        judged = self._judge(round_, "score", answers)
        self._pairs(round_, judged)
        challenger = self._train(round_, start, failed=failed)
        if challenger is None:
            row = self._decision(round_, start, None, None)
        else:
            self._measure(round_, "evaluate", "heldout", challenger)
            row = self._decision(round_, start, challenger, self._difference(start, challenger))
        step = "gate" if challenger else "reject"
        self.store.commit({"decision": [row]}, round=round_, step=step, chunk=0, seconds=0.2)
        kind = "promote" if row["decision"] == "promoted" else "reject"
        now_champion = challenger if row["decision"] == "promoted" else start
        self._event(round_, kind, {"champion": now_champion})

    def _begin(self, round_: int, start: str) -> None:
        about = {
            "id": row_id("round", run=self.recipe.key, round=round_),
            "round": round_,
            "stage": 1,
            "champion": start,
            "created_at": now(),
        }
        steps = [
            {
                "id": row_id("step", run=self.recipe.key, round=round_, step=step.step),
                "round": round_,
                "step": step.step,
                "position": place,
                "operator": step.name,
                "settings": step.model_dump_json(by_alias=True),
                "origin": "round",
                "created_at": now(),
            }
            for place, step in enumerate(self.recipe.stage_of(round_)[1].steps, start=1)
        ]
        self.store.commit({"round": [about], "step": steps}, round=round_, step="begin", chunk=0)

    def _answer(
        self,
        place: tuple[int, str],
        prompts: Sequence[Prompt],
        revision: str,
        sampling: Sampling,
        k: int,
    ) -> list[tuple[Prompt, Completion]]:
        """Commit the answers of a revision, and return them."""
        round_, step = place
        skill = self._skill(revision)
        rows: dict[str, list[Row]] = {
            "rendered_prompt": [], "completion": [], "completion_tokens": [], "content": [],
        }  # fmt: skip
        found = []
        for prompt in prompts:
            rendered = small_rows.rendered_row(round_, prompt)
            rows["rendered_prompt"].append(rendered)
            for slot in range(k):
                text, reason = small_rows.answer_text(prompt, slot, skill, self.spice)
                completion, made = small_rows.completion_of(
                    place, prompt, (text, reason), revision, (sampling, slot, rendered["id"])
                )
                rows["completion"].append(made[0])
                rows["completion_tokens"].append(made[1])
                rows["content"].append(content(text, round_))
                found.append((prompt, completion))
        self.store.commit(rows, round=round_, step=step, chunk=0, seconds=len(found) * 0.11)
        return found

    def _skill(self, revision: str) -> float:
        fake = self.store.folder / "revisions" / revision / "fake.json"
        return float(json.loads(fake.read_text("utf-8"))["skill"])

    def _judge(
        self, round_: int, step: str, answers: Sequence[tuple[Prompt, Completion]]
    ) -> list[tuple[Prompt, Completion, float]]:
        judge = Verifier()
        verdicts = asyncio.run(judge.score([JudgeTask(p, c) for p, c in answers]))
        rows = [
            {
                "id": row_id("judgement", round=round_, step=step, parents=[c.id]),
                "round": round_,
                "step": step,
                "mode": "score",
                "aspect": "",
                "completion_id": c.id,
                "judge": judge.name,
                "judge_revision": judge.revision,
                "attempt": 0,
                "status": verdict.status,
                "value": verdict.value,
                "raw": verdict.raw,
                "parts": json.dumps(dict(verdict.parts)),
                "text_hash": None,
                "seconds": 0.001,
                "created_at": now(),
            }
            for (_, c), verdict in zip(answers, verdicts, strict=True)
        ]
        # A step that evaluates has its answers in chunk 0 and its judgements here in chunk 1.
        chunk = 0 if step == "score" else 1
        self.store.commit({"judgement": rows}, round=round_, step=step, chunk=chunk, seconds=0.4)
        return [(p, c, v.value or 0.0) for (p, c), v in zip(answers, verdicts, strict=True)]

    def _pairs(self, round_: int, judged: Sequence[tuple[Prompt, Completion, float]]) -> None:
        by_prompt: dict[str, list[tuple[float, Completion]]] = {}
        for prompt, completion, value in judged:
            by_prompt.setdefault(prompt.id, []).append((value, completion))
        rows = []
        for prompt_id, found in by_prompt.items():
            best = max(found, key=lambda item: item[0])
            worst = min(found, key=lambda item: item[0])
            if best[0] > worst[0]:
                rows.append(small_rows.pair_row(round_, prompt_id, best[1], worst[1]))
        self.store.commit({"pair": rows}, round=round_, step="pair", chunk=0, seconds=0.1)

    def _train(self, round_: int, start: str, *, failed: bool) -> str | None:
        job = row_id("training_run", run=self.recipe.key, round=round_, step="train")
        pairs = self.store.rows(
            "SELECT id::VARCHAR AS id, prompt_id::VARCHAR AS prompt_id, chosen_id::VARCHAR AS chosen_id, "
            "rejected_id::VARCHAR AS rejected_id FROM pair WHERE round = ? ORDER BY id",
            [round_],
        )
        frozen = [
            small_rows.training_row(round_, job, place, pair) for place, pair in enumerate(pairs)
        ]
        self.store.commit(
            {"training_row": frozen}, round=round_, step="train", chunk=0, seconds=0.3
        )
        steps = 0 if failed else 12
        revision = None if failed else self._publish(round_, start)
        about = {
            "id": job,
            "round": round_,
            "step": "train",
            "trainer": "dpo",
            "settings": json.dumps({"beta": 0.1, "batch_size": 4}),
            "start_revision": start,
            "reference_revision": start,
            "dataset_hash": content_hash([row["id"] for row in frozen]),
            "rows": len(frozen),
            "status": "nonfinite" if failed else "trained",
            "message": "the loss of step 3 is nan" if failed else "",
            "revision": revision,
            "steps": steps,
            "seconds": 41.5,
            "cpu_seconds": 78.2,
            "peak_rss_mb": 2210.0,
            "created_at": now(),
        }
        rows: dict[str, list[Row]] = {"training_run": [about], "training_metric": []}
        rows["training_metric"] = list(small_rows.metric_rows(round_, job, steps))
        if revision:
            rows["revision"] = [self._revision_row(revision, round_, start, job)]
        self.store.commit(rows, round=round_, step="train", chunk=1, seconds=42.0)
        return revision

    # -- measuring

    def _measure(self, round_: int, step: str, split: str, revision: str) -> str:
        """Answer, judge and sum up a split; return the evaluation's id."""
        sampling = Sampling(0.0, 1.0, 0, 24)
        prompts = self._prompts(split)
        identifier = row_id("evaluation", revision=revision, split=split)
        if self.store.rows("SELECT 1 FROM evaluation WHERE id = ?", [identifier]):
            return identifier
        answers = self._answer((round_, step), prompts, revision, sampling, 1)
        judged = self._judge(round_, step, answers)
        row = {
            "id": identifier,
            "round": round_,
            "step": step,
            "split": split,
            "revision": revision,
            "prompts_hash": content_hash([prompt.id for prompt in prompts]),
            "judge": "verifier",
            "judge_revision": Verifier().revision,
            "decoding": json.dumps(asdict(sampling)),
            "n": len(judged),
            "value": sum(value for *_, value in judged) / len(judged),
            "created_at": now(),
        }
        self.store.commit({"evaluation": [row]}, round=round_, step=step, chunk=2)
        return identifier

    def _difference(self, before: str, after: str) -> tuple[Difference, list[Row]]:
        keys = [row_id("evaluation", revision=r, split="heldout") for r in (before, after)]
        answers = self.store.rows(PAIRED, paired_parameters(*keys))
        sides = [[float(a[side]) for a in answers] for side in ("before", "after")]
        return paired_bootstrap(*sides, seed="small", samples=2000), answers

    def _decision(
        self,
        round_: int,
        before: str,
        after: str | None,
        found: tuple[Difference, list[Row]] | None,
    ) -> Row:
        row: Row = {
            "id": row_id("decision", run=self.recipe.key, round=round_),
            "round": round_,
            "step": "gate" if after else "reject",
            "decision": "rejected",
            "reason": "training: nonfinite: the loss of step 3 is nan",
            "champion": before,
            "challenger": after,
            "test": "paired_bootstrap" if after else "",
            **dict.fromkeys(("champion_value", "challenger_value", "delta", "ci_low", "ci_high")),
            "n": 0,
            "heldout_reads": round_ if after else round_ - 1,
            "guards": "{}",
            "created_at": now(),
        }
        if found is None:
            return row
        d, answers = found
        better = d.ci_low > 0
        shown = f"{d.delta:+.3f} [{d.ci_low:+.3f}, {d.ci_high:+.3f}] on {d.n} prompts"
        return row | {
            "decision": "promoted" if better else "rejected",
            "reason": f"{'better' if better else 'worse' if d.ci_high < 0 else 'not proven'}: {shown}",
            "champion_value": d.before,
            "challenger_value": d.after,
            "delta": d.delta,
            "ci_low": d.ci_low,
            "ci_high": d.ci_high,
            "n": d.n,
            "guards": json.dumps(small_rows.guards_of(answers)),
        }

    def _gain(self, round_: int, before: str, after: str) -> None:
        answers = self.store.rows(PAIRED, paired_parameters(before, after))
        counted = [a for a in answers if "transfer" not in a["tags"]]
        sides = [[float(a[side]) for a in counted] for side in ("before", "after")]
        d = paired_bootstrap(*sides, seed=before, samples=2000)
        numbers = {"initial": d.before, "champion": d.after, "delta": d.delta}
        numbers |= {"ci_low": d.ci_low, "ci_high": d.ci_high, "n": d.n}
        self._event(round_, "gain", {**numbers, "evaluations": [before, after]})

    def _event(self, round_: int, kind: str, detail: dict[str, Any]) -> None:
        row = {
            "id": row_id("event", run=self.recipe.key, round=round_, kind=kind),
            "round": round_,
            "step": kind,
            "kind": kind,
            "detail": json.dumps(detail),
            "created_at": now(),
        }
        chunk_rows: Rows = {"event": [row]}
        self.store.commit(chunk_rows, round=round_, step=kind, chunk=0)
