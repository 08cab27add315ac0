"""Candidates: sampled from policies, or brought by the user."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.aio import all_of
from rlaif.calls import Client
from rlaif.errors import CallFailed
from rlaif.types import Candidate, Choice, Prompt, Request


class Sampler:
    """n samples of each policy."""

    def __init__(self, policies: Sequence[Client], *, n: int, temperature: float, max_tokens: int, seed: int) -> None:
        self._policies, self._n = policies, n
        self._temperature, self._max_tokens, self._seed = temperature, max_tokens, seed

    async def __call__(self, prompt: Prompt) -> list[Candidate]:
        """The candidates, policy by policy, sample by sample; a failed one has its error and no text."""
        request = Request(prompt.messages, temperature=self._temperature, max_tokens=self._max_tokens, ordinal=prompt.ordinal)
        drawn = await all_of(
            *(policy.samples(request, prompt_id=prompt.id, n=self._n, run_seed=self._seed) for policy in self._policies)
        )
        return [
            _candidate(f"{prompt.id}/{number * self._n + index}", policy.name, choice)
            for number, (policy, choices) in enumerate(zip(self._policies, drawn, strict=True))
            for index, choice in enumerate(choices)
        ]


class Given:
    """Candidates that were read with their prompts: put in when a prompt is read, taken out when it is worked on."""

    def __init__(self) -> None:
        self._candidates: dict[str, list[Candidate]] = {}

    def put(self, prompt: Prompt, candidates: list[Candidate]) -> Prompt:
        """Holds the candidates until they are asked for."""
        self._candidates[prompt.id] = candidates
        return prompt

    async def __call__(self, prompt: Prompt) -> list[Candidate]:
        """The prompt's candidates."""
        return self._candidates.pop(prompt.id)


def _candidate(name: str, model: str, choice: Choice | CallFailed) -> Candidate:
    if isinstance(choice, CallFailed):
        return Candidate(name, "", model, error=f"{choice.kind}: {choice}")
    return Candidate(name, choice.text, model, choice.finish, choice.thinking, choice.error)
