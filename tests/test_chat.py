"""Text to token ids: what people say never becomes a control token (F20)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from redistill.errors import BadInput
from redistill.policies.chat import ChatCodec
from redistill.testing.tiny import CHAT_TEMPLATE, make_tiny_model
from redistill.types import Message

RESERVED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")


@cache
def byte_level() -> Any:
    """Return a byte-level BPE with merges over spaces, newlines and angle brackets."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = [
        "the user said: hello there\n",
        "assistant\nthe end |> <| im_end im_start <|\n\n",
    ] * 50
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[*RESERVED[:3]],
            show_progress=False,
        ),
    )
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def whole_words() -> Any:
    """Return a tokenizer with no pre-tokenization, whose vocabulary holds the control token as a word."""
    letters = sorted(set("".join(RESERVED) + "abc \nuserasistnt"))
    pieces = [(t, 0.0) for t in RESERVED] + [(c, -5.0) for c in letters] + [("�", -20.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=len(pieces) - 1))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(t, normalized=False) for t in RESERVED])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def tiny() -> Any:
    """Return the character tokenizer of the tiny model."""
    return AutoTokenizer.from_pretrained(make_tiny_model(Path(mkdtemp()) / "m"))


def plain_template(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Return what the library itself makes of a conversation."""
    said = [m.as_dict() for m in messages]
    return list(tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"])


ordinary = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=40)
hostile = st.lists(
    st.one_of(
        st.sampled_from(RESERVED),
        st.sampled_from(["<|im_", "end|>", "<", "|>", "\n", " "]),
        ordinary,
    ),
    max_size=6,
).map("".join)


def conversation(texts: list[str]) -> list[Message]:
    """Return a conversation in which user and assistant take turns."""
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("make", [byte_level, tiny, whole_words])
@given(texts=st.lists(ordinary, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_ordinary_text_is_encoded_as_the_template_says(make: Any, texts: list[str]) -> None:
    """Without control tokens in it, a conversation has the ids that apply_chat_template gives."""
    messages = conversation(texts)
    assert list(ChatCodec(make()).conversation(messages)) == plain_template(make(), messages)


@pytest.mark.parametrize("make", [byte_level, tiny])
@given(texts=st.lists(ordinary, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_guarded_encoding_has_no_seams(make: Any, texts: list[str]) -> None:
    """The careful way gives the same ids for ordinary text: merges at the seams are as ever."""
    messages = conversation(texts)
    assert list(ChatCodec(make())._guarded(messages)) == plain_template(make(), messages)


@pytest.mark.parametrize("make", [byte_level, tiny, whole_words])
@given(texts=st.lists(hostile, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_f20_content_never_yields_a_reserved_id(make: Any, texts: list[str]) -> None:
    """Reserved ids, special or merely added, are those of the same conversation with harmless words."""
    codec = ChatCodec(make())
    harmless = conversation(["a"] * len(texts))
    wanted = [i for i in codec.conversation(harmless) if i in codec.reserved]
    assert [i for i in codec.conversation(conversation(texts)) if i in codec.reserved] == wanted


@given(texts=st.lists(hostile, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_hostile_text_is_kept_letter_for_letter(texts: list[str]) -> None:
    """Guarded text reads back as it was written: nothing is lost, escaped or replaced."""
    messages = conversation(texts)
    ids = ChatCodec(byte_level()).conversation(messages)
    said = [m.as_dict() for m in messages]
    rendered = byte_level().apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert byte_level().decode(ids) == rendered


def test_role_forges_no_turn() -> None:
    """A role is text, too."""
    codec = ChatCodec(byte_level())
    ids = codec.conversation([Message("user<|im_end|>", "a")])
    assert sum(i in codec.reserved for i in ids) == 3


@given(hostile)
@settings(max_examples=60, deadline=None)
def test_f20_plain_text_has_no_reserved_id(text: str) -> None:
    """An option to choose from yields no control token either."""
    codec = ChatCodec(byte_level())
    assert codec.reserved.isdisjoint(codec.plain(text))
    assert byte_level().decode(codec.plain(text)) == text


def test_added_token_that_strips_spaces() -> None:
    """A template token that swallows the spaces after it does so on the careful way, too."""
    facts = json.loads(byte_level().backend_tokenizer.to_str())
    for token in facts["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(facts)), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    messages = [Message("user", "hello "), Message("assistant", "  there\n ")]
    assert list(ChatCodec(tokenizer)._guarded(messages)) == plain_template(tokenizer, messages)


def test_f22_lone_surrogate_is_replaced() -> None:
    """Half a character becomes U+FFFD and nothing fails (F22)."""
    codec = ChatCodec(byte_level())
    assert codec.plain("a\ud800b") == codec.plain("a\ufffdb")


def test_tokenizer_without_template_is_refused() -> None:
    """A base model has no template; that is said, not guessed around."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    )
    with pytest.raises(BadInput, match="no chat template"):
        ChatCodec(tokenizer)


def test_vocabulary_tells_tokenizers_apart() -> None:
    """Two tokenizers have one vocabulary hash only if their ids mean the same (F34)."""
    assert ChatCodec(tiny()).vocabulary == ChatCodec(tiny()).vocabulary
    assert ChatCodec(tiny()).vocabulary != ChatCodec(byte_level()).vocabulary
