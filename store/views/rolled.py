"""The view of what a policy said while it was trained, and what that was worth."""

from __future__ import annotations

from ..view import View

ROLLOUTS = View(
    "rollouts",
    "One row a rollout that trained: what the policy said at a place of an optimizer step, what it earned and how it counted",
    {
        "round": "Round of the job",
        "step": "Step of the job",
        "optimizer_step": "From 1; it was learned from in this one",
        "slot": "Its place in the optimizer step, from 0",
        "prompt": "Last turn of what was asked",
        "answer": "What the policy said, without its end token",
        "tokens": "Tokens of the answer, end token included",
        "finish_reason": "stop, or length where the answer was cut",
        "reward": "What it earned; NULL where a judge failed, or under a teacher that was not asked of it",
        "advantage": "Reward beside that of its group; 0 where no group is compared",
        "weight": "Weight of its loss; 0 where it is as if it had not been sampled",
        "used": "Whether the weight is above 0",
        "attempt": "0, or more where a job that went on said something else here; the last new answer is shown",
        "training_run_id": "training_run.id",
        "prompt_id": "prompt.id",
        "completion_id": "completion.id",
        "short_id": "First 8 characters of completion_id",
    },
)
