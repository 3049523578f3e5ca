"""The noun *leaf*: a way to elicit knowledge or to distil it, as a survey of the field sorts them.

The two trees follow arXiv 2402.13116, figure 3; the words are ours. Hidden states and other media are leaves that a
project on text, whose models may have different shapes, leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KNOWLEDGE, DISTILLATION = "Knowledge elicitation", "Distillation"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One way."""

    name: str
    about: str
    left_out: str = ""
    """Why no recipe will stand for it."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Ways that are of one kind."""

    tree: str
    name: str
    about: str
    leaves: tuple[Leaf, ...]


BRANCHES = (
    Branch(
        KNOWLEDGE,
        "Labeling",
        "a teacher answers prompts that are given",
        (Leaf("Labeling", "the teacher's answers are what is learned"),),
    ),
    Branch(
        KNOWLEDGE,
        "Expansion",
        "from a few prompts, more of their kind",
        (Leaf("Expansion", "prompts are proposed from demonstrations, and answered"),),
    ),
    Branch(
        KNOWLEDGE,
        "Curation",
        "from what a subject is, prompts about it",
        (Leaf("Curation", "prompts are proposed from topics or documents, and answered"),),
    ),
    Branch(
        KNOWLEDGE,
        "Feature",
        "what happens inside the teacher",
        (
            Leaf("logits", "the teacher's distributions of the next token"),
            Leaf("hidden states", "the teacher's layers", "needs models of one shape (TED)"),
        ),
    ),
    Branch(
        KNOWLEDGE,
        "Feedback",
        "a teacher says something of the student's answers",
        (
            Leaf("rank", "which of several answers is better"),
            Leaf("score", "how good an answer is"),
            Leaf("critique", "in words, what is wrong with it"),
            Leaf("rewrite", "how it should have been"),
            Leaf("hard examples", "work on what the student fails at"),
            Leaf("distribution", "what the teacher would have said at each token of it"),
        ),
    ),
    Branch(
        KNOWLEDGE,
        "Self-Knowledge",
        "the student's own answers, without a better model",
        (
            Leaf("filter", "what passes a check is kept"),
            Leaf("vote", "what most answers agree on counts as right"),
            Leaf("reward", "who answers also judges"),
            Leaf("contrast", "one answer is made to be better than another"),
            Leaf("self-play", "a reference against the student's own answer"),
        ),
    ),
    Branch(
        KNOWLEDGE,
        "Other media",
        "pictures, sound, video",
        (Leaf("multimodal", "prompts or answers that are no text", "text alone is kept"),),
    ),
    Branch(
        DISTILLATION,
        "SFT",
        "likelihood of good answers",
        (Leaf("SFT", "kept answers are made likelier"),),
    ),
    Branch(
        DISTILLATION,
        "Divergence",
        "distance between two distributions",
        (
            Leaf("forward KL", "cover all that the teacher may say"),
            Leaf("reverse KL", "seek what the teacher says best"),
            Leaf("JSD", "something between the two"),
        ),
    ),
    Branch(
        DISTILLATION,
        "RL",
        "expected reward of what is sampled",
        (
            Leaf("reward model", "a model of preferences, trained first, rewards"),
            Leaf("direct", "a judge rewards without a model between"),
        ),
    ),
    Branch(
        DISTILLATION,
        "Rank",
        "the order of answers",
        (
            Leaf("DPO", "one over another, against a reference policy"),
            Leaf("RRHF", "a list by likelihood, with a hinge"),
            Leaf("PRO", "a list by likelihood, one after another"),
        ),
    ),
)


def leaves() -> Iterator[tuple[Branch, Leaf]]:
    """Yield every leaf with its branch, in the order of the trees."""
    return ((branch, leaf) for branch in BRANCHES for leaf in branch.leaves)
