"""What a tokenizer and a length make of the rows, as the trainers of TRL 1.16.0 tokenize, drop and cut them.

DPOTrainer and KTOTrainer (`_prepare_dataset`) drop rows whose prompt alone has `max_length` tokens, and their collators keep
the first `max_length` tokens of the rest. RewardTrainer drops pairs of which one side with its prompt is longer. SFTTrainer
cuts, and drops rows of which nothing that is trained on is left. A prompt counts as far as prompt and prompt with answer share
their first tokens (`common_prefix_length`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.check.findings import Fault
from rlaif.check.formats import Example, Said
from rlaif.errors import InputError, RlaifError

MAX_LENGTH = 1024
"""The default of DPOConfig, RewardConfig, KTOConfig and SFTConfig."""
TRAINERS = ("dpo", "reward", "kto")
"""Those that take pairs; of other rows the columns say whose they are."""


def load(name: str) -> Any:
    """The tokenizer of a folder, a hub ID or `smollm2`. Raises InputError if it cannot be had."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError("--tokenizer needs transformers: pip install 'rlaif[local]'") from None
    from rlaif.models import convert

    path = Path(name).expanduser()
    if name not in ("smollm2", "hf/smollm2") and not path.is_dir() and (path.exists() or name.startswith((".", "/", "~"))):
        raise InputError(f"--tokenizer {name!r}: there is no folder {str(path)!r}")
    transformers.logging.set_verbosity_error()  # a text longer than the model reads is what is looked for here
    try:
        where = str(convert.get() if name in ("smollm2", "hf/smollm2") else path if path.is_dir() else name.removeprefix("hf/"))
        return transformers.AutoTokenizer.from_pretrained(where)
    except RlaifError:
        raise
    except Exception as error:  # of transformers, tokenizers and the hub's client, which share no kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--tokenizer {name!r}: transformers cannot load it: {first}") from None


class Tokens:
    """Checks rows with a tokenizer. Call it with a row."""

    def __init__(self, tokenizer: Any, *, max_length: int = MAX_LENGTH, trainer: str | None = None) -> None:
        self._tokenizer, self._max, self._trainer = tokenizer, max_length, trainer
        self._eos = str(tokenizer.eos_token or "")
        self._specials = tuple(token for token in tokenizer.all_special_tokens if token.strip())

    def __call__(self, example: Example) -> Iterator[Fault]:
        """What goes wrong when the row is turned into tokens."""
        if example.format.kind in ("stepwise", "ranked", "prompt"):
            return
        if example.format.form == "messages":
            yield from self._controls(example)
            try:
                faults, prompt, wholes = self._conversation(example)
            except Exception as error:  # of jinja2 or a template's own raise_exception, or a type that it cannot take
                yield "template", f"it refuses the row: {(str(error) or type(error).__name__).splitlines()[0]}"
                return
            yield from faults
            torn = any(code == "template" for code, _ in faults)
        else:
            torn = False
            prompt, wholes = example.asked, [example.asked + self._ended(text) for text in example.texts]
        ids, *others = self.encode([prompt, *wholes], special=example.format.form != "messages")
        names = (name for name, _ in example.answers)
        yield from self._lengths(example, ids if prompt else [], list(zip(names, others, strict=True)), torn)

    def encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """The tokens of texts. `special`: with those that the tokenizer puts around plain texts; templates bring their own."""
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
        return found

    def _ended(self, text: str) -> str:
        """Trainers put the end token behind plain texts (`add_eos`)."""
        return text if text.endswith(self._eos) else text + self._eos

    def _controls(self, example: Example) -> Iterator[Fault]:
        names = ("prompt", *(name for name, _ in example.answers))
        for name, text in zip(names, (example.asked, *example.texts), strict=True):
            token = next((token for token in self._specials if token in text), None)
            if token is not None:
                at = text.find(token)
                yield "special_tokens", f"`{name}` has {token}: {text[max(0, at - 30) : at + len(token) + 30]}"

    def _conversation(self, example: Example) -> tuple[list[Fault], str, list[str]]:
        """(faults, the prompt as the template renders it, prompt and answer of each side)."""
        prompt: list[Any] = example.prompt if isinstance(example.prompt, list) else []
        tools = example.row.get("tools")
        settings: dict[str, Any] = {"tools": (json.loads(tools) if isinstance(tools, str) else tools) or None}
        settings |= example.row.get("chat_template_kwargs") or {}
        render = partial(self._tokenizer.apply_chat_template, tokenize=False, **settings)
        faults: list[Fault] = []
        opened = render(prompt, add_generation_prompt=True) if prompt else ""
        if prompt:
            lost = _lost(prompt, opened)
            if lost:
                faults.append(("prompt_changed", lost))
        wholes = []
        for name, said in example.answers:
            whole = render(prompt + list(said))
            if prompt and said and not whole.startswith(opened) and example.format.kind != "messages":
                faults.append(("template", f"the prompt is rendered otherwise before `{name}`: {_difference(opened, whole)}"))
            lost = _lost(said, whole[len(opened) :] if whole.startswith(opened) else whole)
            if lost:
                faults.append(("content_lost", f"`{name}`: {lost}"))
            wholes.append(whole)
        return faults, opened, wholes

    def _lengths(self, example: Example, prompt: list[int], sides: list[tuple[str, list[int]]], torn: bool) -> Iterator[Fault]:
        """`torn`: that the prompt is no beginning of the whole was said already."""
        trainer, most = self._trainer_of(example), self._max
        shared = min([_shared(prompt, ids) for _, ids in sides], default=len(prompt))
        if shared < len(prompt) and not torn and trainer != "reward" and example.format.kind != "messages":
            cut = self._tokenizer.decode(prompt[shared:])
            yield "boundary", f"the end of the prompt, {cut!r}, is read as part of the answer"
        longest = max((len(ids) for _, ids in sides), default=0)
        if trainer == "reward":
            if longest > most:
                yield "dropped", f"{longest} tokens, more than {most}"
            return
        if shared >= most and example.format.kind not in ("messages", "text"):
            yield "dropped", f"the prompt alone has {shared} tokens, the length is {most}"
            return
        if example.is_pair and longest > most and trainer == "dpo" and sides[0][1][:most] == sides[1][1][:most]:
            yield "equal_cut", f"the first {most} tokens are the same; prompt {shared}, {_counts(sides)}"
            return
        if longest > most:
            name, ids = next(side for side in sides if len(side[1]) > most)
            yield "cut", f"{name} ends at token {len(ids)}, the length is {most}"

    def _trainer_of(self, example: Example) -> str:
        if example.is_pair:
            return self._trainer or "dpo"
        return "kto" if example.format.kind == "unpaired" else "sft"


def _counts(sides: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {len(ids)} tokens" for name, ids in sides)


def _shared(first: list[int], second: list[int]) -> int:
    """How many tokens the two begin with in common: TRL's `common_prefix_length`."""
    if second[: len(first)] == first:
        return len(first)
    return next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _lost(messages: Said, rendered: str) -> str:
    """What of the messages the rendered text does not hold, word for word but for white space around it; "" if nothing."""
    at = 0
    for message in messages if isinstance(messages, list) else ():
        content = str(message.get("content") or "").strip()
        found = rendered.find(content, at)
        if found < 0:
            return f"the {message['role']}'s message is not in the text as it is: {content[:60]!r}"
        at = found + len(content)
    return ""


def _difference(opened: str, whole: str) -> str:
    at = next((at for at, (a, b) in enumerate(zip(opened, whole, strict=False)) if a != b), min(len(opened), len(whole)))
    return f"{opened[max(0, at - 10) : at + 30]!r} becomes {whole[max(0, at - 10) : at + 30]!r}"
