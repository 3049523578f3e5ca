"""A tiny random language model with a character tokenizer and a chat template, made in a moment.

It knows nothing, but everything that handles real models handles it: a Llama with tied embeddings, about
a hundred tokens, an end token, a pad token and chat markup.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ..policies.revision import (
    Revision,
    canary_sequences,
    fingerprint_model,
    publish,
    record_canary,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")


def make_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    tied: bool = True,
) -> Path:
    """Write a random Llama as a Hugging Face folder of fp32 safetensors, and return the folder.

    Args:
        folder: where to; made if it is not there.
        seed: seeds the weights; the global generator is left as it was.
        layers: transformer layers.
        hidden: width, a multiple of 4.
        tied: whether head and embeddings are one tensor, as in SmolLM2.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _write_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # answers that differ from each other, unlike the usual 0.02
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def make_tiny_revision(
    root: Path, *, seed: int = 0, parent: str | None = None, hidden: int = 32, tied: bool = True
) -> Revision:
    """Publish a random model as a revision with its canary under `root`; see `make_tiny_model`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    make_tiny_model(staging, seed=seed, hidden=hidden, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(staging)
    tokenizer = AutoTokenizer.from_pretrained(staging)
    return publish(
        staging,
        root,
        revision=fingerprint_model(model),
        parent=parent,
        canary=record_canary(model, canary_sequences(tokenizer)),
        facts={"seed": seed},
    )


def _vocabulary() -> dict[str, int]:
    tokens = [*SPECIAL, "\n", *(chr(code) for code in range(32, 127)), "é"]
    return {token: i for i, token in enumerate(tokens)}


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token="<|unknown|>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|unknown|>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
