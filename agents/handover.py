"""The hand-over of a card: the sampler goes, the trainer comes and goes, the sampler comes back; timed by part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..hashing import row_id
from ..store.store import Row, Store, now

KIND = "handover"


@dataclass(slots=True)
class Handover:
    """Seconds of one hand-over. All but `train` are its price."""

    round: int
    step: str
    side_by_side: bool
    """Whether both had a card of their own, so that nothing was released."""
    release: float = 0.0
    """The policies give their memory back."""
    start: float = 0.0
    """The training process starts, imports, and loads its model."""
    train: float = 0.0
    """It trains, and publishes what came of it."""
    load: float = 0.0
    """The student reads its next weights."""
    proof: float = 0.0
    """It shows by canaries that it holds them."""

    def trained(self, whole: float, began: float | None, inside: float) -> None:
        """Divide the time of a job into its start and its training.

        Args:
            whole: seconds from the order to the result.
            began: seconds until the trainer told of its first step; None where it does not tell.
            inside: seconds that the job itself has measured.
        """
        self.start = began if began is not None else max(0.0, whole - inside)
        self.train = whole - self.start

    def write(self, store: Store) -> None:
        """Keep it as an event of its round."""
        detail = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
        row: Row = {
            "id": row_id("event", kind=KIND, round=self.round, step=self.step),
            "round": self.round,
            "step": "load",
            "kind": KIND,
            "detail": json.dumps(detail),
            "created_at": now(),
        }
        store.commit({"event": [row]}, round=self.round, step=f"load:{KIND}:{self.step}", chunk=0)
