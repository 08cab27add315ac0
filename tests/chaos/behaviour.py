"""How an endpoint differs from a perfect one: every setting of the test server, with what it may be."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, fields

FAULTS = ("rate_limit", "server_error", "reset", "html", "cut_json")
CHOICES = {
    "logprobs": ("given", "ignored", "vague"),
    "thinking": ("", "field", "block", "tail"),
    "answers": ("varied", "same", "empty", "blank"),
    "judge": ("oracle", "first", "tie", "unreadable", "contradictory"),
    "twins": ("", "follow", "contrary", "same", "both"),
    "rate_kind": ("bucket", "sliding", "fixed"),
    "retry_after": ("exact", "ms", "seconds", "date", "reset_headers", "none"),
    "down": ("reset", "503"),
    "log": ("full", "counts"),
}


@dataclass(frozen=True)
class Behaviour:
    """How a room differs from a perfect endpoint. Names of failures are those of `faults.FAILURES`."""

    latency_s: float = 0.0
    """The time that passes before anything else happens."""

    # What it says
    most_choices: int = 128
    """1: `n` is ignored."""
    missing_choices: int = 0
    """So many fewer than asked for, where more than one is asked for."""
    logprobs: str = "given"
    """given, silently ignored, or vague: the letters are not among the likely tokens."""
    owner: str = ""
    """Whom the list of models names as owner: vllm, sglang and llamacpp hold an answer to the choices that a request names."""
    refuses: str = ""
    """A field that is answered with 400."""
    refusal: str = ""
    """What the 400 says, where it is not the usual."""
    refusal_param: str = ""
    """The field that the 400 names, where it is another one than `refuses`."""
    usage: str = "given"
    """given, or the rest of a failure's name: missing, huge, negative and others of usage_."""
    thinking: str = ""
    """field (reasoning_content), block (<think>...</think>) or tail (...</think>, the template opened the block)."""
    answers: str = "varied"
    """varied, same (all alike), empty or blank."""
    truncated_above: float = 2.0
    """Answers of a higher quality end with finish_reason length."""
    judge: str = "oracle"
    """oracle, first, tie, unreadable or contradictory."""
    twins: str = ""
    """Of two options, to one who says "I like" one of them: follow (names it), contrary (the other one), same (the first by
    the alphabet, whoever asks) or both; as an answer, and as a verdict on the two."""

    # What goes wrong
    fault_share: float = 0.0
    """This share of the requests, told by the request's number, meets one of `faults` in turn."""
    faults: str = ",".join(FAULTS)
    """Failures by name."""
    fault_first: int = 0
    """The first so many attempts of every body meet one of `faults`."""
    failure: str = ""
    """What every request meets that comes after `fail_after` others and holds `fail_when`: the name of a failure,
    or echo_400 and the like, which repeats the request's authorization."""
    fail_after: int = 0
    """So many requests of the room come before the first failure."""
    fail_when: str = ""
    """What the request's JSON holds if it fails."""
    fail_count: int = 0
    """Only the first so many of these requests fail; 0: all."""
    drip_s: float = 0.1
    """The time between two pieces of a body that comes slowly."""
    down_after: int = 0
    """So many requests of the room come before an outage of `down_for_s`."""
    down_for_s: float = 0.0
    """How long the outage lasts; 0: there is none."""
    down: str = "reset"
    """reset: connections break, also those of requests in flight when it begins; 503: new requests are refused."""

    # How much it takes
    slots: int = 0
    """So many requests are worked on at a time and the others wait in the order they came; 0: all at once."""
    service_s: float = 0.0
    """The mean time that the work on a request takes."""
    service_cv: float = 0.0
    """The work's coefficient of variation over requests: lognormal, and always the same for equal requests."""
    batch_slope: float = 0.0
    """The work takes (1 + batch_slope * others worked on when it begins) times as long."""
    limit: int = 0
    """So many requests are accepted in any `limit_s`; the others meet 429 without a word on when to come back."""
    limit_s: float = 0.1
    """The window of `limit`."""
    rates: str = ""
    """Requests a second that are accepted, from the first request on: 50:15,20:15,100 is 50 for 15 s, 20 for 15 s, then 100."""
    rates_repeat: bool = False
    """The steps of `rates` begin again, or else the last one stays."""
    rate_kind: str = "bucket"
    """bucket, sliding or fixed: a token bucket, or windows of `rate_window_s`."""
    rate_burst: int = 10
    """What the bucket holds."""
    rate_window_s: float = 1.0
    """The length of a window."""
    retry_after: str = "exact"
    """How a 429 of `rates` says when to come back: exact (a fraction of seconds), ms (retry-after-ms), seconds (rounded
    up), date, reset_headers (x-ratelimit-reset-requests: 1m2.5s) or none."""
    grace_s: float = 0.05
    """A request that comes so soon after a 429 may have been sent before that was read: it is not held against the client."""

    # What it remembers
    log: str = "full"
    """full: every request with its body; counts: counters and the requests' ids only."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: it is one of {', '.join(map(repr, allowed))}")


def documented() -> dict[str, str]:
    """What each field says of itself, by its name."""
    body = ast.parse(inspect.getsource(Behaviour)).body[0]
    assert isinstance(body, ast.ClassDef)
    said = {}
    for line, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said[ast.unparse(line.target)] = " ".join(str(after.value.value).split())
    assert set(said) == {setting.name for setting in fields(Behaviour)}, "every setting says what it does"
    return said
