"""Candidates: sampled from policies, or brought by the user."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.aio import all_of
from rlaif.calls import Client
from rlaif.errors import CallFailed
from rlaif.types import Candidate, Choice, Prompt, Request


class Sampler:
    """n samples of each policy at a time: once, or as long as more are asked for and there are at most `most` in all."""

    def __init__(
        self, policies: Sequence[Client], *, n: int, temperature: float, max_tokens: int, seed: int, most: int | None = None
    ) -> None:
        self._policies, self._n, self._most = policies, n, n * len(policies) if most is None else most
        self._temperature, self._max_tokens, self._seed = temperature, max_tokens, seed

    async def __call__(self, prompt: Prompt, have: int = 0) -> list[Candidate]:
        """The candidates after the first `have`, policy by policy, sample by sample; a failed one has its error and no text.

        None if there are no more.
        """
        first = have // len(self._policies)
        n = min(self._n, self._most // len(self._policies) - first)
        if n < 1:
            return []
        request = Request(prompt.messages, temperature=self._temperature, max_tokens=self._max_tokens, ordinal=prompt.ordinal)
        drawn = await all_of(
            *(policy.samples(request, prompt_id=prompt.id, n=n, run_seed=self._seed, first=first) for policy in self._policies)
        )
        return [
            _candidate(f"{prompt.id}/{have + number * n + index}", policy.name, choice)
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

    async def __call__(self, prompt: Prompt, have: int = 0) -> list[Candidate]:
        """The prompt's candidates; there are never more."""
        return [] if have else self._candidates.pop(prompt.id)


def _candidate(name: str, model: str, choice: Choice | CallFailed) -> Candidate:
    if isinstance(choice, CallFailed):
        return Candidate(name, "", model, error=f"{choice.kind}: {choice}")
    return Candidate(name, choice.text, model, choice.finish, choice.thinking, choice.error)
