"""The records as they are: every candidate and every verdict, nothing selected."""

from __future__ import annotations

from rlaif.export import number
from rlaif.export.parts import Row
from rlaif.types import Candidate, Record, Verdict


def row(record: Record) -> Row:
    """One record: the prompt with its other columns, `candidates`, and `verdicts` with the ids they were `shown`."""
    prompt = record.prompt
    return {
        "id": prompt.id,
        "messages": list(prompt.messages),
        "reference": prompt.reference,
        "fields": dict(prompt.fields),
        "candidates": [_candidate(c) for c in record.candidates],
        "verdicts": [_verdict(v) for v in record.verdicts],
    }


def _candidate(candidate: Candidate) -> Row:
    return {
        "id": candidate.id,
        "text": candidate.text,
        "model": candidate.model,
        "finish": candidate.finish,
        "thinking": candidate.thinking,
        "error": candidate.error,
        "score": None if candidate.score is None else number(candidate.score),
        "degenerate": candidate.degenerate,
    }


def _verdict(verdict: Verdict) -> Row:
    return {
        "judge": verdict.judge,
        "shown": list(verdict.shown),
        "scores": None if verdict.scores is None else [number(score) for score in verdict.scores],
        "scale": verdict.scale,
        "error": verdict.error,
        "reason": verdict.reason,
        "principle": verdict.principle,
        "weight": number(verdict.weight),
    }
