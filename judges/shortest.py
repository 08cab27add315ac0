"""A sample of a custom judge: the shorter answer wins."""

from collections.abc import Sequence

from rlaif import Candidate, Prompt


def shortest(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
    """Prefer the shorter answer."""
    return [-float(len(c.text)) for c in candidates]
