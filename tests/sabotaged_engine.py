"""The real engine with one of vLLM's silent failures put back, each named by `REDISTILL_FAULT`.

Each was measured: the call returns, nothing is raised, and the engine answers with other weights than it was told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FAULT = "REDISTILL_FAULT"

if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from redistill.policies.engine import HEAD, Engine, Tensors, serve  # noqa: E402


class Sabotaged(Engine):
    """Holds other weights than it was told to, in one way."""

    _broken = False

    @property
    def fault(self) -> str:
        """The way."""
        return os.environ[FAULT]

    def load(self, folder: str, adapter: str, *, merge: bool) -> None:
        """Load as the fault has it."""
        if self.fault == "path":  # a tied head keeps its packed copy of the old embeddings
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self._folder = folder
            self._forget_prefixes()
        else:
            super().load(folder, adapter, merge=merge)

    def _hand_over(self, tensors: Tensors) -> None:
        if self.fault == "nothing":
            return
        if (
            self.fault == "no_head"
        ):  # named_parameters() has a tied head under the embeddings' name alone
            tensors = {name: t for name, t in tensors.items() if name != HEAD}
        if self.fault == "a_layer_missing":
            tensors = {name: t for name, t in tensors.items() if ".layers.1." not in name}
        if self.fault == "breaks_off" and not self._broken:
            self._broken = True
            super()._hand_over(tensors)
            raise RuntimeError("it broke off")
        super()._hand_over(tensors)

    def _attached(self, folder: str) -> Any:
        if (
            self.fault == "same_number"
        ):  # what lies in the folder has changed, and the engine does not look
            self._adapters = 0
            shared = Path(os.environ["REDISTILL_ADAPTER"])
            for file in Path(folder).glob("adapter_*"):
                (shared / file.name).write_bytes(file.read_bytes())
            folder = str(shared)
        return super()._attached(folder)

    def _forget_prefixes(self) -> None:
        if self.fault != "stale_prefixes":
            super()._forget_prefixes()


if __name__ == "__main__":
    serve(Sabotaged())
