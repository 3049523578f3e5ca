"""How a model's folder turns conversations into tokens and back: all that a policy can do without weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..types import Message, TokenIds
from .chat import ChatCodec
from .revision import Revision


class Wording:
    """Tokenizer, template, stop tokens and context of a model: the part of a policy that every engine shares.

    Args:
        revision: where tokenizer and architecture come from; they are those of all that is trained from it.
    """

    def __init__(self, revision: Revision) -> None:
        self._folder = revision.folder

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and answer may have together."""
        return self._stated_context

    @cached_property
    def _stated_context(self) -> int:
        config = read_json(self._folder / "config.json")
        config = config.get("text_config", config)
        return int(config.get("max_position_embeddings") or config["n_positions"])

    @cached_property
    def tokens(self) -> int:
        """How many tokens the model knows; every id is below."""
        config = read_json(self._folder / "config.json")
        return int(config.get("text_config", config)["vocab_size"])

    @cached_property
    def vocabulary(self) -> str:
        """Hash of the map from tokens to ids."""
        return self._codec.vocabulary

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer: of the generation config, the model's and the tokenizer's.

        Raises:
            BadInput: none of them names one, so that no answer would ever end.
        """
        named = [read_json(self._folder / "config.json").get("eos_token_id")]
        named += [self._tokenizer.eos_token_id]
        if (self._folder / "generation_config.json").is_file():
            named.append(read_json(self._folder / "generation_config.json").get("eos_token_id"))
        lists = [n if isinstance(n, list) else [n] for n in named]
        stops = frozenset(int(i) for ids in lists for i in ids if i is not None)
        if not stops:
            raise BadInput.at(
                str(self._folder),
                "no end token is known, so that no answer would end",
                "set eos_token_id in its generation_config.json",
            )
        return stops

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """Render a conversation with the chat template, ready to be answered."""
        return self._codec.conversation(messages)

    def spell(self, text: str) -> TokenIds:
        """Return the ids of a whole answer that somebody else wrote, end token included."""
        end = self._tokenizer.eos_token_id
        return (*self._codec.plain(text), end if end in self.stop_ids else min(self.stop_ids))

    def reread(self, text: str) -> str:
        """Return a text as its tokens spell it."""
        return self._codec.decode(self._codec.plain(text))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token by itself; of a control token nothing."""
        return [self._codec.decode((one,)) for one in ids]

    def misrendered(self, messages: Sequence[Message], *, answered: bool) -> str:
        """Say what the template does to a conversation that it should not, or nothing."""
        return self._codec.misrendered(messages, answered=answered)

    def check_room(self, prompts: Sequence[TokenIds], wanted: int) -> None:
        """Refuse prompts that are empty or leave no room for `wanted` tokens.

        Raises:
            ValueError: says which it is.
        """
        longest = max(map(len, prompts), default=0)
        if longest + wanted > self.context_length:
            raise ValueError(
                f"a prompt of {longest} and an answer of {wanted} tokens exceed "
                f"the context of {self.context_length}"
            )
        if not all(prompts):
            raise ValueError("a prompt holds no token")

    def check_pairs(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> None:
        """Refuse pairs that cannot be scored.

        Raises:
            ValueError: a prompt is empty, or a pair exceeds the context.
        """
        if any(not p or len(p) + len(c) > self.context_length for p, c in pairs):
            raise ValueError(f"a pair is scored with 1 to {self.context_length} tokens")

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers

        return transformers.AutoTokenizer.from_pretrained(
            self._folder, local_files_only=True, trust_remote_code=False
        )

    @cached_property
    def _codec(self) -> ChatCodec:
        return ChatCodec(self._tokenizer)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
