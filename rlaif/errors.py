"""What can go wrong, and who has to act.

    RlaifError
    ├── InputError    the user's input is wrong; nothing was spent; exit status 2
    ├── StopRun       the run cannot go on (key, quota, endpoint, disk); resumable; exit status 3
    └── CallFailed    one model call ended without an answer; stored, counted, retried on request
        └── Unsupported   the model refuses a feature that was asked for; never stored, the caller asks otherwise

A judge that failed is not an exception: it is a `Verdict` without scores and with an error.
"""


class RlaifError(Exception):
    """Anything that rlaif raises on purpose; its message is written for the user."""


class InputError(RlaifError):
    """Wrong usage or input, found before any money was spent."""


class StopRun(RlaifError):
    """The run has to stop now and can be resumed later. `kind` is one word: auth, quota, model, unreachable, ..."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CallFailed(RlaifError):
    """One call gave no answer. `kind` is one word: too_long, bad_request, bad_body, server_error, broken, ..."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unsupported(CallFailed):
    """The model refuses a feature, named by `kind`, for every call."""
