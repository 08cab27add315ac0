"""The baseline that every judge has to beat: the longer answer wins."""

from collections.abc import Sequence

from rlaif import Candidate, Prompt


def longest(prompt: Prompt, candidates: Sequence[Candidate]) -> list[float]:
    """Prefer the longer answer."""
    return [float(len(c.text)) for c in candidates]
