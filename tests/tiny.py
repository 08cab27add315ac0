"""Tiny transformers models in real folders: seeded weights, a tokenizer of bytes, a chat template; and ways to ask them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import Books

from rlaif.models import hf
from rlaif.models.hf.chat_text import encode
from rlaif.models.hf.worker import Job
from rlaif.types import Reply, Request

if TYPE_CHECKING:
    from rlaif.models.hf import network, running

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<pad>")
SIZES: dict[str, Any] = {"vocab_size": 259, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE, pad: str | None = None) -> None:
    """A tokenizer with a token a byte."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIALS])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token=pad)
    made.chat_template = template
    made.save_pretrained(folder)


def save_chat(folder: Path, kind: str = "llama", **more: Any) -> Path:
    """A causal model of a kind: llama (grouped heads), mistral (a window of 24 tokens), gpt2 (learned positions)."""
    import torch
    import transformers

    grouped = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 512}
    made: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**grouped | more),
        "mistral": lambda: transformers.MistralConfig(**grouped | {"sliding_window": 24} | more),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=259, n_layer=2, n_embd=64, n_head=4, n_positions=512, bos_token_id=257, eos_token_id=257
        ),
    }
    torch.manual_seed(11)
    config = made[kind]()
    config.eos_token_id = 257
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # far enough apart that what is likely is not a matter of rounding
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_reward(folder: Path, *, labels: int = 1, pad: int | None = None, template: str | None = TEMPLATE) -> Path:
    """A classifier with a seeded head; `pad` is the configuration's padding token."""
    import torch
    import transformers

    torch.manual_seed(12)
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=96, num_key_value_heads=2, max_position_embeddings=256, num_labels=labels, pad_token_id=pad
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    save_tokenizer(folder, template=template)
    return folder


# Asking them


def user(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def make(folder: Path, tmp_path: Path, **extra_body: Any) -> hf.Hf:
    return hf.make(str(folder), cache=tmp_path / "digests.json", concurrency=64, extra_body=extra_body)


def ask(model: hf.Hf, *requests: Request) -> list[Any]:
    """The replies, or what was raised."""

    async def run() -> list[Any]:
        try:
            return await asyncio.gather(*(model.send(request, Books()) for request in requests), return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(run())


def texts(reply: Reply) -> list[str]:
    return [choice.text for choice in reply.choices]


# The engine without a loop: jobs that note what became of them


class Noted(Job):
    """A job whose outcome is kept."""

    __slots__ = ("gone", "outcome")

    def __init__(self, request: Request) -> None:
        self.work, self.begun, self.gone = request, False, False
        self.outcome: Any = None

    @property
    def dropped(self) -> bool:
        return self.gone

    def finish(self, result: Any) -> None:
        self.outcome = result

    def fail(self, error: BaseException) -> None:
        self.outcome = error


def chat_of(loaded: network.Network, **settings: Any) -> running.Chat:
    from rlaif.models.hf import running

    def tokenise(request: Request) -> list[int]:
        return encode(loaded.tokenizer, request.messages, template=None, generation_prompt=True)

    return running.Chat(loaded, tokenise, **settings)


def answers(chat: running.Chat, requests: Sequence[Request], *, late: Sequence[Request] = ()) -> list[Any]:
    """What each request came to; `late` ones join after three steps."""
    jobs, later = [Noted(request) for request in requests], [Noted(request) for request in late]
    chat.take(list(jobs))
    steps = 0
    while chat.step() or (later and steps < 3):
        steps += 1
        if steps == 3:
            chat.take(list(later))
    return [job.outcome for job in (*jobs, *later)]


def said(answered: running.Answered) -> list[str]:
    return [choice["message"]["content"] for choice in answered.choices]


def judge_calls(rng: random.Random, marks: int) -> list[Request]:
    """The calls of some prompts' pairwise judges: a common beginning, then the prompt, then two answers in both orders."""
    calls = []
    for number in range(marks):
        task = f"Which is better? Be fair and brief. Question {number}: " + "why " * rng.randint(5, 20)
        candidates = ["".join(rng.choices("abcdefgh ", k=rng.randint(1, 60))) for _ in range(3)]
        for a in candidates:
            for b in candidates:
                if a != b:
                    text = f"{task}\n{number:012d} A: {a}\n{number:012d} B: {b}\nAnswer:"
                    calls.append(Request(user(text), temperature=1.0, max_tokens=1, logprobs=20, mark=f"{number:012d}"))
    return calls


PROMPTS = [user(text) for text in ("Hi", "Say something about rivers, lakes and the sea.", "x" * 90, "Name a colour.", "?")]
