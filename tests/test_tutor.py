"""The tutor plays a teacher for the toy: right but for its slips, in whatever way it is asked."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from redistill.agents.judge import JudgeTask
from redistill.agents.judges.chat import Chat
from redistill.agents.judges.model import Choice, Rating
from redistill.agents.speaker import Ask, Given, Measured, Reply, Weighed, bind
from redistill.agents.template import fill, sound, template
from redistill.policies.policy import Request, Sampling
from redistill.testing.tutor import SLIP, Tutor, reply, solve, worth
from redistill.types import Completion, Judgement, Message, Prompt

QUESTION, RIGHT, WRONG = "please reverse kadol", "lodak", "kadol kadol"
GREEDY = Sampling(0.0, 1.0, 0, 400)


def toy() -> list[tuple[str, str]]:
    """Return every question of the toy with its right answer, as the file has them."""
    file = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [(row["prompt"], row["verify"]["equals"]["text"]) for row in rows]


def tutor(cache: Path) -> Tutor:
    """Return the tutor as a policy that holds its one revision."""
    policy = Tutor()
    policy.load(Tutor.initial(cache))
    return policy


class Spoken:
    """Lets a tutor speak for every role."""

    def __init__(self, policy: Tutor) -> None:
        self.policy = policy

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation."""
        requests = [Request(self.policy.encode(ask.messages), ask.seed) for ask in asks]
        return [Reply(said.text) for said in self.policy.generate(requests, sampling)]

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Weigh the options for each conversation."""
        told = [self.policy.encode(ask.messages) for ask in asks]
        return [Weighed(tuple(shares)) for shares in self.policy.choose(told, options)]

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Nobody asks for them here."""
        raise NotImplementedError


def task(*answers: str, question: str = QUESTION) -> JudgeTask:
    """Return answers to a question, of which each number is a different one."""
    prompt = Prompt(id=question, messages=(Message("user", question),), split="train")
    said = [
        Completion(
            id=f"{question} {place}",
            prompt_id=prompt.id,
            text=text,
            token_ids=(),
            logprobs=(),
            finish_reason="stop",
            revision="",
        )
        for place, text in enumerate(answers)
    ]
    return JudgeTask(prompt, said[0], tuple(said[1:]))


def test_it_solves_every_question_of_the_toy() -> None:
    """What it takes for right is what the prompts' checkers demand, and what is no question it does not answer."""
    assert [solve(question) for question, _ in toy()] == [right for _, right in toy()]
    assert solve("spell abc") is None
    assert solve("reverse kadol and then stop") is None


def test_it_slips_as_often_as_it_says() -> None:
    """Of a thousand answers about a tenth are wrong, and the same question is answered the same way."""
    said = [(reply([{"role": "user", "content": question}]), right) for question, right in toy()]
    wrong = sum(text != right for text, right in said) / len(said)
    assert SLIP / 2 < wrong < 2 * SLIP
    assert said == [(reply([{"role": "user", "content": q}]), right) for q, right in toy()]


def test_only_the_right_answer_is_worth_most() -> None:
    """An answer that is nearer to the right one is worth more, and none but it is worth 1."""
    assert worth(QUESTION, RIGHT) == 1
    assert 1 > worth(QUESTION, RIGHT + "k") > worth(QUESTION, WRONG) > 0


def test_it_rewrites_its_earlier_answer(tmp_path: Path) -> None:
    """Asked to correct an answer, it answers the question that stands before it."""
    policy = tutor(tmp_path)
    told = fill(sound(template("rewrite", ("given",), "t")), answer=WRONG, given="It is wrong.")
    turns = [Message("user", QUESTION), Message("assistant", WRONG), Message("user", told)]
    asked = policy.encode(turns)
    warm = Sampling(1.0, 1.0, 0, 64)
    said = Counter(g.text for g in policy.generate([Request(asked, n) for n in range(200)], warm))
    assert said[RIGHT] > 150
    assert said[RIGHT] < 200


def test_what_it_proposes_is_a_question_of_the_toy(tmp_path: Path) -> None:
    """Shown a few questions it asks others, and each can be answered."""
    policy = tutor(tmp_path)
    shown = policy.encode([Message("user", "Write one more:\n1. double abcd\n2. please odd zyxw")])
    requests = [Request(shown, seed) for seed in range(50)]
    asked = [g.text for g in policy.generate(requests, Sampling(1.0, 1.0, 0, 64))]
    assert len(set(asked)) > 45
    assert all(solve(text) is not None for text in asked)


def judged(found: list[Judgement]) -> list[Judgement]:
    """Return judgements, of which none has failed."""
    assert [j.status for j in found] == ["ok"] * len(found)
    return found


def test_judges_in_words_understand_it(tmp_path: Path) -> None:
    """`chat` reads its scores, aspects, comparisons and ranks, with reasons and without; most are right."""
    speaker = Spoken(tutor(tmp_path))
    for reasoning in (True, False):
        chat = bind(Chat(role="judge", reasoning=reasoning), speaker)
        right = judged(asyncio.run(chat.score([task(RIGHT)])))[0]
        wrong = judged(asyncio.run(chat.score([task(WRONG)])))[0]
        assert (right.value or 0) > (wrong.value or 0)
        both = judged(asyncio.run(chat.compare([task(RIGHT, WRONG), task(WRONG, RIGHT)])))
        assert [j.ranks for j in both] == [(1, 2), (2, 1)]
        three = judged(asyncio.run(chat.compare([task(WRONG, RIGHT, "kado")])))[0]
        assert three.ranks is not None
        assert three.ranks[1] == 1
    many = bind(Chat(role="judge", aspects=("true", "clear"), scale=(1, 5)), speaker)
    assert set(judged(asyncio.run(many.score([task(RIGHT)])))[0].aspects) == {"true", "clear"}


def test_judges_of_chances_understand_it(tmp_path: Path) -> None:
    """`choice` and `rating` find the right answer likelier to be better, and higher on the scale."""
    speaker = Spoken(tutor(tmp_path))
    choice = bind(Choice(role="judge"), speaker)
    both = judged(asyncio.run(choice.compare([task(RIGHT, WRONG), task(WRONG, RIGHT)])))
    assert [j.ranks for j in both] == [(1, 2), (2, 1)]
    assert all(j.probability is not None and 0 < j.probability < 1 for j in both)
    rating = bind(Rating(role="judge", scale=(0, 5)), speaker)
    high, low = judged(asyncio.run(rating.score([task(RIGHT), task(WRONG)])))
    assert (high.raw or 0) > 4 > (low.raw or 0)


def test_its_critique_says_what_is_wrong(tmp_path: Path) -> None:
    """Of most wrong answers it says what is right, and of most right ones that there is no fault."""
    chat = bind(Chat(role="judge", rubric="constitution"), Spoken(tutor(tmp_path)))
    asked = toy()[:60]
    wrong = asyncio.run(chat.critique([task("zz", question=question) for question, _ in asked]))
    right = asyncio.run(chat.critique([task(text, question=question) for question, text in asked]))
    told = [text in said.text for said, (_, text) in zip(wrong, asked, strict=True)]
    cleared = [said.text == "no fault" for said in right]
    assert 0.7 < sum(told) / 60 < 1
    assert 0.7 < sum(cleared) / 60 < 1
