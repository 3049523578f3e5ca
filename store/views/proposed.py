"""The view of what was proposed, and why it became a prompt or did not."""

from __future__ import annotations

from ..view import View

PROPOSALS = View(
    "proposals",
    "One row a reply to a propose step: the prompt that was read in it, and whether it was kept or why it was refused",
    {
        "round": "Round that asked for it",
        "step": "Step that asked for it",
        "prompt": "The prompt, as it was read",
        "verdict": "kept; known: it is there already; alike: too near to one that is; leaks: near to a held-out or "
        "test prompt; short, long, empty; cut: the reply had no end",
        "nearest": "The prompt that it is most like, as far as it was compared",
        "similarity": "How alike the two are, in [0, 1]",
        "measure": "What the similarity is: rouge_l, minhash, ngrams (share of a held-out text's n-grams) or equal",
        "nearest_split": "Split of the nearest: train, heldout or test",
        "asked": "What the role was asked, the prompts that it was shown included",
        "reply": "What it said",
        "role": "Role that spoke",
        "revision": "Content hash of the weights that spoke, or the name of a model that is none of ours",
        "seeds": "How many prompts it was shown",
        "prompt_id": "prompt.id that it became; NULL where it was refused",
        "nearest_id": "prompt.id of the nearest",
        "completion_id": "completion.id of the reply",
        "id": "proposal.id",
        "short_id": "First 8 characters of the id",
    },
)
