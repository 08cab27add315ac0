"""A reward model as a judge: a sequence classifier of transformers with one label, which rates one answer at a time.

A conversation is what the model's chat template makes of the prompt's messages with the candidate as the assistant's turn.
Special tokens in what they say are broken up: a candidate that ends its turn and writes the next ones is scored as the text
that it is.
All that waits is scored together, like lengths side by side, padded at the right. A reward is the one of a plain forward
pass of the conversation alone. What is longer than the model reads is a failed verdict, never cut; so is a reward that is
no finite number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.judges.specials import Disarm
from rlaif.keys import digest
from rlaif.models.hf import files
from rlaif.models.hf.settings import read_template
from rlaif.models.hf.worker import Engine, Job, Worker
from rlaif.types import Candidate, Message, Prompt, Verdict

if TYPE_CHECKING:
    import torch

TIMEOUT_S = 3600.0
"""For one verdict, with all the waiting for the model to be loaded and for those before it."""

_CPU_TOKENS, _GPU_TOKENS = 8192, 65536
_CPU_ENOUGH, _GPU_ENOUGH = 256, 4096
_HEADS = re.compile(r"(^|\.)(score|classifier|classification_head|logits_proj|sequence_summary|head)\.")


class RewardSpec(BaseModel):
    """A YAML spec of a reward model.

    `model` is a folder or a hub ID, `hf/` before it or not; without one it is --judge-model. `system` is put before
    conversations that have no system message. `label` names the output that is the reward, where there are several;
    `chat_template` a Jinja file, where the model has none. `batch_tokens` is the most that one forward pass reads, padding
    counted.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["reward"] = "reward"
    model: str | None = None
    system: str | None = None
    label: str | None = None
    chat_template: str | None = None
    batch_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


class RewardScorer:
    """A reward model in this process; it is loaded with the first call. `digest` knows it and its settings by content."""

    def __init__(self, spec: RewardSpec, folder: Path, *, weights: str, label: int, chat_template: str | None) -> None:
        name = spec.model or str(folder)
        self.name = f"reward:{folder.resolve().name if Path(name).expanduser().is_dir() else name}"
        self.digest = digest(["reward", weights, spec.system, label, chat_template, spec.dtype, "disarmed"])
        self._spec, self._folder, self._label, self._template = spec, folder, label, chat_template
        self._disarm = Disarm(files.specials(folder))
        self._worker = Worker(f"reward-{folder.name}", self._load)

    async def score(self, messages: Sequence[Message]) -> float:
        """The reward of the conversation, which ends with the assistant's turn.

        Raises CallFailed (`too_long`, `bad_request`, `bad_reward`) or StopRun.
        """
        reward: float = await self._worker.run(messages)
        return reward

    def conversation(self, prompt: Prompt, candidate: Candidate) -> list[Message]:
        """The messages that are scored: with the system text, unless the prompt has one, and the candidate at the end.

        Special tokens in the prompt and the candidate are broken up (`Disarm`).
        """
        said = [*prompt.messages, {"role": "assistant", "content": candidate.text}]
        messages = [{**message, "content": self._disarm(message["content"])} for message in said]
        if self._spec.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._spec.system})
        return messages

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin; those that wait for their turn raise `reason`."""
        self._worker.stop(reason)

    async def close(self) -> None:
        """Ends the thread and frees the model."""
        await self._worker.close()

    @property
    def stopped(self) -> StopRun | None:
        """Why it takes no more."""
        return self._worker.stopped

    def _load(self) -> Engine:
        import transformers

        from rlaif.models.hf.network import load_parts

        model, tokenizer, device = load_parts(self._folder, transformers.AutoModelForSequenceClassification, self._spec.dtype)
        return Rewards(model, tokenizer, device, self._label, self._template, self._spec.batch_tokens)


class Rewards:
    """The engine of a reward model: `model` is called as transformers' classifiers are."""

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, label: int, chat_template: str | None, batch_tokens: int | None
    ) -> None:
        from rlaif.models.hf.memory import Fit
        from rlaif.models.hf.network import window_of

        self._model, self._tokenizer, self._device, self._label = model, tokenizer, device, label
        self._template, self._window = chat_template, window_of(model.config)
        gpu = device.type == "cuda"
        self.fit = Fit(batch_tokens or (_GPU_TOKENS if gpu else _CPU_TOKENS), enough=_GPU_ENOUGH if gpu else _CPU_ENOUGH)
        self._line: list[tuple[Job, list[int]]] = []

    def take(self, jobs: list[Job]) -> None:
        """Puts conversations into the line; those that cannot be read fail."""
        for job in jobs:
            try:
                self._line.append((job, self._tokens(job.work)))
            except CallFailed as error:
                job.fail(error)

    def step(self) -> bool:
        """Scores all that wait."""
        line, self._line = [(job, tokens) for job, tokens in self._line if not job.dropped], []
        for job, _ in line:
            job.begun = True
        for batch, rewards in self.fit.run(line, lambda item: len(item[1]), lambda b: self._forward([t for _, t in b])):
            for place, (job, tokens) in enumerate(batch):
                if rewards is None:
                    said = f"{len(tokens)} tokens do not fit into the memory of {self._device.type}"
                    job.fail(CallFailed("too_long", said))
                elif not math.isfinite(rewards[place]):
                    job.fail(CallFailed("bad_reward", f"the reward is {rewards[place]}, which is no finite number"))
                else:
                    job.finish(rewards[place])
        return False

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        from rlaif.models.hf.chat_text import encode

        tokens = encode(self._tokenizer, messages, template=self._template, generation_prompt=False)
        if self._window is not None and len(tokens) > self._window:
            said = f"the conversation has {len(tokens)} tokens; the reward model reads {self._window}"
            raise CallFailed("too_long", said)
        return tokens

    def _forward(self, rows: Sequence[list[int]]) -> list[float]:
        """The rewards of token rows in one forward pass.

        transformers takes the reward at the last token that is not the padding, and refuses several rows where the
        configuration names none: then a token serves that stands at no row's end.
        """
        import torch

        config = self._model.config.get_text_config()
        pad, width = config.pad_token_id, max(map(len, rows))
        if pad is None:
            ends = {row[-1] for row in rows}
            config.pad_token_id = next(token for token in range(len(rows) + 1) if token not in ends)
        ids = torch.full((len(rows), width), config.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        try:
            with torch.inference_mode():
                logits = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
            rewards: list[float] = logits[:, self._label].float().tolist()
            return rewards
        finally:
            config.pad_token_id = pad


def open_scorer(spec: RewardSpec, *, cache: Path) -> RewardScorer:
    """The reward model of `spec`, whose files are known to be whole; digests are remembered in `cache`. Raises InputError."""
    if spec.model is None:
        raise InputError("a reward judge needs a model: give --judge-model hf/ID_OR_DIR, or `model` in its spec")
    files.need_local()
    folder = files.folder_of(spec.model)
    files.check(folder)
    label = _label(spec, folder)
    if spec.chat_template is None and not files.has_chat_template(folder):
        raise InputError(f"the reward model {spec.model!r} has no chat template: give its file as `chat_template`")
    template = read_template(spec.chat_template) if spec.chat_template is not None else None
    return RewardScorer(spec, folder, weights=files.digest_of(folder, cache), label=label, chat_template=template)


def judge_of(scorer: RewardScorer) -> Callable[[Prompt, Sequence[Candidate]], Coroutine[Any, Any, Verdict]]:
    """The scorer as a judge function that rates one candidate at a time, for `CodeJudge`."""

    async def reward(prompt: Prompt, candidates: Sequence[Candidate]) -> Verdict:
        ids = tuple(c.id for c in candidates)
        try:
            scores = tuple([await scorer.score(scorer.conversation(prompt, c)) for c in candidates])
        except CallFailed as error:
            return Verdict(scorer.name, ids, None, error=f"{error.kind}: {error}")
        return Verdict(scorer.name, ids, scores, scale="rating")

    reward.arity = 1  # type: ignore[attr-defined]
    reward.timeout_s = TIMEOUT_S  # type: ignore[attr-defined]
    return reward


def _label(spec: RewardSpec, folder: Path) -> int:
    """Which output is the reward. Raises InputError if the model has several, or no head that was trained."""
    config = files.config_of(folder)
    kinds = config.get("architectures") or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(f"{spec.model!r} is no reward model but {', '.join(kinds)}: it has no trained head for a score")
    stored = [name for file in files.weights(folder) if file.suffix == ".safetensors" for name in files.tensors(file)]
    if stored and not any(_HEADS.search(name) for name in stored):
        raise InputError(f"{spec.model!r} has no weights of a head for a score (score.weight): its rewards would be random")
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if spec.label is not None:
        found = [int(number) for number, name in names.items() if name == spec.label]
        if len(found) != 1:
            raise InputError(f"{spec.model!r} has no label {spec.label!r}; it has {', '.join(map(repr, names.values()))}")
        return found[0]
    if len(names) != 1:
        said = ", ".join(map(repr, list(names.values())[:5]))
        raise InputError(f"{spec.model!r} gives {len(names)} numbers ({said}), a reward model one: name the reward as `label`")
    return 0
