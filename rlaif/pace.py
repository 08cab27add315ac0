"""Temporary."""

import math


class Flight: ...


class Pace:
    def __init__(self, ceiling, *, rpm=None, tpm=None):
        self.limit = ceiling
        self.in_flight = 0
        self.held_until = 0.0

    def admit(self, now, tokens=0):
        if self.held_until > now:
            return self.held_until - now
        return 0.0 if self.in_flight < self.limit else math.inf

    def sent(self, now, tokens=0, kind=""):
        self.in_flight += 1
        return Flight()

    def answered(self, f, now, tokens=None):
        self.in_flight -= 1

    def failed(self, f, now):
        self.in_flight -= 1

    def refused(self, f, now, w):
        self.in_flight -= 1
        self.hold(now, w or 0.25)
        return True

    def hold(self, now, w):
        self.held_until = max(self.held_until, now + w)

    def state(self, now):
        return {"limit": self.limit, "rate": None}
