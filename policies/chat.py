"""Text to token ids: a chat template may write control tokens, what people and models say may not.

A tokenizer turns `<|im_end|>` inside a user's text into the control token, and the text can then forge
turns. Here reserved ids come from the template alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import BadInput
from ..hashing import content_hash
from ..types import Message, TokenIds
from .model_folder import NO_TEMPLATE

_SURROGATES = re.compile("[\ud800-\udfff]")
_PRIVATE_USE = 0xF0000
"""Plane 15: no text that means something holds these characters."""


class ChatCodec:
    """Renders conversations as token ids with one tokenizer.

    Args:
        tokenizer: a fast tokenizer with a chat template.

    Raises:
        BadInput: the tokenizer is not a fast one, or has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BadInput.at(
                str(tokenizer.name_or_path),
                "its tokenizer is not a fast one",
                "add a tokenizer.json",
            )
        if not tokenizer.chat_template:
            raise BadInput.at(
                str(tokenizer.name_or_path),
                "its tokenizer has no chat template",
                NO_TEMPLATE,
            )
        self._tokenizer = tokenizer
        self._added = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items()}
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        # What stands for letters that the vocabulary lacks may be in a text, unless it also ends one.
        unknown = {tokenizer.unk_token_id} - ends
        self.reserved = frozenset(i for i, _ in self._added.values()) - unknown
        """Ids that text never yields: special tokens and all others that were added."""
        longest_first = sorted(self._added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._bare: Any = None

    @property
    def vocabulary(self) -> str:
        """Hash of the map from tokens to ids."""
        return content_hash(self._tokenizer.get_vocab())

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self._tokenizer.eos_token_id)

    def conversation(self, messages: Sequence[Message], *, answered: bool = False) -> TokenIds:
        """Render messages with the chat template, ready to be answered, or as they were."""
        said = [Message(_clean(m.role), _clean(m.content)) for m in messages]
        texts = [text for m in said for text in (m.role, m.content)]
        if not any(self.reserved.intersection(self._ids(text)) for text in texts):
            return tuple(self._ids(self._render(said, answered=answered)))
        return self._guarded(said, answered=answered)

    def plain(self, text: str) -> TokenIds:
        """Return the ids of a text with no markup around it."""
        text = _clean(text)
        ids = self._ids(text)
        return self._literal(text) if self.reserved.intersection(ids) else tuple(ids)

    def misrendered(self, messages: Sequence[Message], *, answered: bool) -> str:
        """Say what the template does to a conversation that it should not, or nothing.

        That it drops the thinking of earlier turns is as its model was trained, and no fault of a prompt.

        Args:
            messages: what is asked.
            answered: whether it is also to be the beginning of what is rendered with an answer.
        """
        said = [Message(_clean(m.role), _clean(m.content)) for m in messages]
        asked = self._render(said, answered=False)
        if any(m.content.rpartition("</think>")[2].strip() not in asked for m in said):
            return "leaves a turn out"
        whole = [*said, Message("assistant", "Yes.")]
        if answered and not self._render(whole, answered=True).startswith(asked):
            return "renders a question otherwise once it is answered"
        return ""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text without control tokens."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _render(self, messages: Sequence[Message], *, answered: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [m.as_dict() for m in messages],
                tokenize=False,
                add_generation_prompt=not answered,
            )
        )

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _guarded(self, messages: Sequence[Message], *, answered: bool = False) -> TokenIds:
        """Render with stand-ins for what looks like a control token, and encode around the real ones.

        A tokenizer cuts a text at its control tokens and encodes each stretch by itself. The same is done
        here, but only at the control tokens that the template wrote; so no new seams arise.
        """
        stand_ins = self._stand_ins(messages)

        def hide(text: str) -> str:
            return self._pattern.sub(lambda found: stand_ins[found[0]], text)

        hidden = [Message(hide(m.role), hide(m.content)) for m in messages]
        rendered = self._render(hidden, answered=answered)
        ids: list[int] = []
        begin = 0
        for found in [*self._pattern.finditer(rendered), None]:
            stretch = rendered[begin : found.start() if found else None]
            if found and self._added[found[0]][1].lstrip:
                stretch = stretch.rstrip()
            for token, stand_in in stand_ins.items():
                stretch = stretch.replace(stand_in, token)
            ids += self._literal(stretch)
            if found:
                identifier, token_facts = self._added[found[0]]
                ids.append(identifier)
                begin = found.end()
                if token_facts.rstrip:
                    begin += len(rendered[begin:]) - len(rendered[begin:].lstrip())
        return tuple(ids)

    def _stand_ins(self, messages: Sequence[Message]) -> dict[str, str]:
        """Return for each added token a private-use character that no message holds."""
        used = {character for m in messages for character in m.role + m.content}
        free = (chr(c) for c in range(_PRIVATE_USE, _PRIVATE_USE + 0xFFFD) if chr(c) not in used)
        return dict(zip(self._added, free, strict=False))

    def _literal(self, text: str) -> TokenIds:
        """Encode a text letter for letter, as if the tokenizer had no added tokens."""
        if self._bare is None:
            self._bare = _without_added_tokens(self._tokenizer)
        ids = self._bare.encode(text, add_special_tokens=False).ids
        if self.reserved.isdisjoint(ids):
            return tuple(ids)
        # A vocabulary without pre-tokenization can hold the whole control token as a word: cut it open.
        parts = self._pattern.sub(lambda found: found[0][0] + "\0" + found[0][1:], text).split("\0")
        ids = [i for part in parts for i in self._bare.encode(part, add_special_tokens=False).ids]
        if not self.reserved.isdisjoint(ids):
            raise BadInput.at(
                str(self._tokenizer.name_or_path),
                "its tokenizer cannot write its control tokens as text",
            )
        return tuple(ids)


def _without_added_tokens(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    facts |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(facts))


def _clean(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes."""
    return _SURROGATES.sub("\ufffd", text)
