"""What the user allows: at most so many sends and so many tokens in any 60 seconds.

Hard limits, kept by looking back over what was sent, unlike the limits of an endpoint, which have to be found. Sends are
spaced evenly, so that a minute's share is not gone in its first second; only a little lateness is made up for.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 60.0 + 1e-6  # what left it is outside by more than rounding
_LATENESS_S = 0.25


class Share:
    """One send's tokens in the window: the estimate, until what was really used is known."""

    __slots__ = ("at", "counted", "tokens")

    def __init__(self, at: float, tokens: int) -> None:
        self.at, self.tokens, self.counted = at, tokens, True


class Quota:
    """Sends and tokens of the last minute against `rpm` and `tpm` (None: not limited)."""

    def __init__(self, rpm: float | None, tpm: float | None) -> None:
        for name, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}: give a number above 0, or leave it out for no limit")
        self._gap = 60.0 / rpm if rpm else 0.0
        self._sends: deque[float] | None = deque(maxlen=max(1, int(rpm))) if rpm else None  # the latest, at most a minute's
        self._slot = float("-inf")
        self._tpm = tpm
        self._shares: deque[Share] = deque()
        self._tokens = 0

    def wait(self, now: float, tokens: int) -> float:
        """Seconds until a call of `tokens` fits; not above 0: now. A call beyond `tpm` fits an empty window."""
        wait = 0.0
        if self._sends is not None:
            wait = self._slot - now
            if len(self._sends) == self._sends.maxlen:
                wait = max(wait, self._sends[0] + max(_WINDOW_S, self._gap) - now)
        if self._tpm is not None:
            self._forget(now)
            excess = self._tokens + tokens - self._tpm
            if excess > 0 and self._tokens > 0:
                for share in self._shares:  # the oldest leave first; so many of them must
                    excess -= share.tokens
                    last = share
                    if excess <= 0:
                        break
                wait = max(wait, last.at + _WINDOW_S - now)
        return wait

    def sent(self, now: float, tokens: int) -> Share | None:
        """Counts a send; the share is what `used` corrects."""
        if self._sends is not None:
            self._sends.append(now)
            self._slot = max(self._slot, now - _LATENESS_S) + self._gap
        if self._tpm is None:
            return None
        share = Share(now, tokens)
        self._shares.append(share)
        self._tokens += tokens
        return share

    def used(self, share: Share, tokens: int) -> None:
        """Puts what a call really used in the place of its estimate, while it is in the window."""
        if share.counted:
            self._tokens += tokens - share.tokens
            share.tokens = tokens

    def _forget(self, now: float) -> None:
        shares = self._shares
        while shares and shares[0].at + _WINDOW_S <= now:
            share = shares.popleft()
            share.counted = False
            self._tokens -= share.tokens
