"""Train the `tiny` student and its teacher from scratch: 1M-parameter Llamas for a quick start.

Twins with one childhood, in which they learn the skills. Then the student reads text as it is in the
world: right in content, but a polite question is often answered with chatter around the answer, and a
long word with half an answer (`messy`). It knows more than it shows, which is what a round of feedback can
bring out. The teacher goes on with clean answers. No word of `recipes/data/tiny.jsonl` is ever seen.

    python make_tiny.py --out .        # writes tiny/ and tiny-teacher/, a few minutes on one core

The same machine and torch version give the same bytes; another machine gives a student of the same kind.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import Tensor

transformers: Any = import_module("transformers")  # its own types lack what is called here

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
PROMPTS = runpy.run_path(str(DATA / "make_tiny_prompts.py"))
SPECIAL = ("<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ALPHABET = (*(chr(code) for code in range(32, 127)), "\n")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATTER = ("it is {}", "{} i think", "i think it is {}")
POLITENESS = (-1.5, 0.3, 1.5, 3.0)
"""Log-odds of chatter over a clean answer, by wording."""
LAZINESS = (-2.5, -1.0, 0.3, 1.5)
"""Log-odds of half an answer over a clean one, by hardness."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training."""

    steps: int
    rate: float
    """Peak learning rate, reached after WARMUP steps, falling to a tenth over the last third."""
    messy: bool
    seed: int


CHILDHOOD = Stage(steps=600, rate=1.5e-3, messy=False, seed=1)
STUDENT = Stage(steps=300, rate=5.0e-4, messy=True, seed=2)
TEACHER = Stage(steps=200, rate=5.0e-4, messy=False, seed=3)
BATCH = 64
WARMUP = 50
README = {
    "tiny": "# tiny\nThe student of the quick start: 1M parameters, made by `../make_tiny.py`, Apache-2.0.\n",
    "tiny-teacher": "# tiny-teacher\nThe twin of `tiny` that read clean answers, by `../make_tiny.py`, Apache-2.0.\n",
}


def make_tokenizer() -> Any:
    """Return a tokenizer with one token a character: printable ASCII and the newline.

    Without a merge, BPE is a table of characters; another character becomes `<|unk|>`. Control tokens
    are matched as whole strings unless `split_special_tokens=True`, which reads them as characters.
    """
    vocab = {token: index for index, token in enumerate((*SPECIAL, *ALPHABET))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<|unk|>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        chat_template=TEMPLATE,
    )


def make_model(tokenizer: Any) -> Any:
    """Return an untrained Llama of about a million parameters."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def messy(task: Any, rng: random.Random) -> str:
    """Return an answer as the student's text has it: clean, wrapped in chatter, or broken off."""
    chatter = math.exp(POLITENESS[task.wording])
    lazy = math.exp(LAZINESS[task.hardness])
    answer: str = task.answer
    match rng.choices(("clean", "chatter", "lazy"), (1.0, chatter, lazy))[0]:
        case "chatter":
            return rng.choice(CHATTER).format(answer)
        case "lazy":
            return answer[: (len(answer) + 1) // 2]
    return answer


def examples(stage: Stage) -> Iterator[tuple[str, str]]:
    """Yield endless (prompt, answer) pairs, without the words that the prompts file uses."""
    rng = random.Random(stage.seed)  # noqa: S311 - data, not secrets
    with (DATA / "tiny.jsonl").open(encoding="utf-8") as file:
        kept_out = {word for line in file for word in json.loads(line)["prompt"].strip("?").split()}
    while True:
        task = PROMPTS["draw"](rng)
        if task.word not in kept_out:
            yield task.prompt, messy(task, rng) if stage.messy else task.answer


def encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Return the ids of prompt and answer, and how many of them are the prompt's."""
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(head + answer + "<|end|>", add_special_tokens=False)["input_ids"]
    return ids, len(tokenizer(head, add_special_tokens=False)["input_ids"])


def collate(rows: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels, [batch, longest]; prompt and padding carry the label -100.

    Padding is at the right, behind every label, so causal attention needs no mask.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    for index, (row, start) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def rate_at(step: int, stage: Stage) -> float:
    """Return the learning rate of a step: warm-up, plateau, a fall to a tenth in the last third."""
    left = (stage.steps - step) / (stage.steps / 3)
    return stage.rate * min((step + 1) / WARMUP, 1.0, 0.1 + 0.9 * left)


def train(model: Any, tokenizer: Any, stage: Stage) -> None:
    """Train the model in place on the stage's text: mean log loss over answer tokens, AdamW."""
    source = examples(stage)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(stage.steps):
        rows = [encode(tokenizer, *next(source)) for _ in range(BATCH)]
        ids, labels = collate(rows, tokenizer.pad_token_id)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, stage)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1} of {stage.steps}: loss {loss.item():.3f}", flush=True)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: bfloat16 weights, tokenizer, chat template, what ends an answer."""
    copy = transformers.LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(README[folder.name], encoding="utf-8")


def main() -> None:
    """Train the childhood once, then each twin from it, and save both."""
    parser = argparse.ArgumentParser(description="Train the tiny student and its teacher.")
    parser.add_argument("--out", type=Path, required=True, help="folder for tiny/, tiny-teacher/")
    parser.add_argument("--steps", type=int, help="steps of each stage, for a trial")
    options = parser.parse_args()

    def stage(full: Stage) -> Stage:
        return replace(full, steps=options.steps or full.steps)

    torch.set_num_threads(1)  # the order of sums, and so the bytes, depends on it
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, stage(CHILDHOOD))
    childhood = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, full in (("tiny", STUDENT), ("tiny-teacher", TEACHER)):
        model.load_state_dict(childhood)
        train(model, tokenizer, stage(full))
        save(model, tokenizer, options.out / name)


if __name__ == "__main__":
    main()
