"""How a command speaks: a live display on a terminal, plain lines elsewhere, or JSON lines; and that stdout is its own.

Everything that is said while a run goes on is written by one thread, from a queue: a terminal that stands still or is
gone stops nothing. What others print to stdout meanwhile (a judge, a library) goes to stderr, or above the display.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any, Literal, Protocol, TextIO, cast

from rich.console import Console, Group
from rich.live import Live as Repainted
from rich.text import Text

from rlaif import display
from rlaif.live import EndpointState, Held, Report

LINE_EVERY_S = 10.0
LogFormat = Literal["text", "json"]
_MOST_QUEUED = 10_000


class Stream(io.TextIOBase):
    """A text stream that may lose its reader (a closed terminal, a broken pipe): from then on, words go nowhere."""

    def __init__(self, inner: TextIO | None) -> None:
        self._inner, self.gone = inner, inner is None

    def write(self, text: str) -> int:
        """Writes, or does not; never raises."""
        self._try(lambda inner: inner.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes, or does not; never raises."""
        self._try(lambda inner: inner.flush())

    def writable(self) -> bool:
        """Whether it takes words: always."""
        return True

    def isatty(self) -> bool:
        """Whether a person reads."""
        return not self.gone and self._inner is not None and self._inner.isatty()

    def fileno(self) -> int:
        """The file's number. Raises OSError if it has none."""
        if self._inner is None:
            raise io.UnsupportedOperation("fileno")
        return self._inner.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What turns letters into bytes."""
        return getattr(self._inner, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of letters that the encoding lacks."""
        return getattr(self._inner, "errors", None) or "replace"

    @property
    def buffer(self) -> IO[bytes]:
        """The bytes below, for those who write bytes."""
        return cast(IO[bytes], getattr(self._inner, "buffer", None) or io.BytesIO())

    def _try(self, act: Callable[[TextIO], object]) -> None:
        if self.gone or self._inner is None:
            return
        try:
            act(self._inner)
        except (OSError, ValueError):
            self.gone = True
            with contextlib.suppress(OSError, ValueError):  # what is still buffered must not fail when Python ends
                _to_nowhere(self._inner.fileno())


class Voice(Protocol):
    """One way to show a run."""

    def see(self, report: Report, news: Sequence[tuple[str, Held | None]], last: bool) -> None:
        """Takes the report of this second, and what is `news` of endpoints that wait; `last`: the run has ended."""

    def say(self, event: str, words: str, **facts: Any) -> None:
        """Says at once: a person is told the `words`, a program the event and its facts."""


class Face:
    """What a command says, from any thread: in its own words on `console`, or in JSON. Made by `speaking`."""

    def __init__(self, stream: Stream, log_format: LogFormat) -> None:
        self.stream = stream
        self.console = Console(file=cast(IO[str], stream))
        self.is_json = log_format == "json"
        self.is_live = not self.is_json and stream.isatty() and not self.console.is_dumb_terminal and not _is_ci()
        self._screen = _Screen(self.console, stream) if self.is_live else None
        self.voice: Voice = self._screen or (_Json(stream) if self.is_json else _Plain(self.console))
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def later(self, act: Callable[[], None]) -> None:
        """Has something written while a run is followed. Never waits; may be called by a signal handler."""
        if self._queue.qsize() < _MOST_QUEUED:
            self._queue.put(act)

    def note(self, words: str) -> None:
        """Tells something beside the run's course."""
        self.later(lambda: self.voice.say("note", f"note: {words}", message=words))

    def end(self, event: Literal["stop", "error"], words: str, **facts: Any) -> None:
        """The last word of a command that did not reach its end."""
        if self.is_json:
            self.voice.say(event, words, **facts)
        else:
            print(words, file=sys.stderr, flush=True)

    def write(self) -> None:
        """Writes what comes until `finish`."""
        failed = False
        while (act := self._queue.get()) is not None:
            try:
                act()
            except Exception as error:  # a run is worth more than its display
                if not failed:
                    self.note(f"the display has failed, the run goes on: {type(error).__name__}: {error}")
                failed = True
        if self._screen is not None:
            self._screen.close()

    def finish(self) -> None:
        """Lets `write` return."""
        self._queue.put(None)


@contextmanager
def speaking(log_format: LogFormat = "text") -> Iterator[Face]:
    """A face on stdout. Meanwhile what anybody else prints to stdout goes to stderr."""
    out, err = sys.stdout, sys.stderr
    own, taken = Stream(out), None
    aside = Stream(err)
    if out is not None and not own.isatty():
        taken = _take_over(out)
        own = Stream(taken or out)
    face = Face(own, log_format)
    sys.stdout = sys.stderr = cast(TextIO, aside)
    try:
        yield face
    finally:
        sys.stdout, sys.stderr = out, err
        own.flush()
        if taken is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(taken.fileno(), out.fileno())
                taken.close()


def _take_over(out: TextIO) -> TextIO | None:
    """A new file on stdout's place, whose own number becomes stderr's: C code and child processes print there too."""
    try:
        out.flush()
        number = os.dup(out.fileno())
        os.dup2(sys.stderr.fileno(), out.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    return open(number, "w", encoding=out.encoding, errors="replace")


def leave_terminal() -> None:
    """The terminal is gone: what was to go there goes nowhere from now on, also what child processes print."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                _to_nowhere(number)


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


class _Screen:
    """A few lines at the bottom of a terminal, repainted; words go above them."""

    def __init__(self, console: Console, stream: Stream) -> None:
        self._console, self._stream = console, stream
        self._live = Repainted(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def see(self, report: Report, news: Sequence[tuple[str, Held | None]], last: bool) -> None:
        if self._stream.gone or last:
            return
        if not self._live.is_started:
            self._live.start()
            self._console.show_cursor(True)  # kill -9 must not leave a terminal without one
        size = self._console.size
        lines = display.screen(report, size.width, size.height, ascii_only=self._console.options.ascii_only)
        self._live.update(Group(*lines, ""), refresh=True)  # the empty line takes the ^C that a terminal writes for Ctrl-C

    def say(self, event: str, words: str, **facts: Any) -> None:
        if not self._stream.gone:
            self._console.print(Text.from_ansi(words))

    def close(self) -> None:
        """Takes the lines away."""
        if not self._stream.gone:
            self._live.stop()


class _Plain:
    """A line now and then."""

    def __init__(self, console: Console) -> None:
        self._console, self._next = console, time.monotonic() + LINE_EVERY_S

    def see(self, report: Report, news: Sequence[tuple[str, Held | None]], last: bool) -> None:
        for name, held in news:
            self.say("hold", f"{name}: {'goes on' if held is None else display.waiting(held, report['time'])}")
        if time.monotonic() >= self._next and not last:
            self._next = time.monotonic() + LINE_EVERY_S
            self.say("progress", display.line(report))

    def say(self, event: str, words: str, **facts: Any) -> None:
        print_plain(words, self._console)


class _Json:
    """One JSON object a line."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._next = stream, time.monotonic() + LINE_EVERY_S

    def see(self, report: Report, news: Sequence[tuple[str, Held | None]], last: bool) -> None:
        for name, held in news:
            until = None if held is None else _utc(held["until"])
            self.say("hold", "", endpoint=name, held=held is not None, why=held and held["why"], until=until)
        if time.monotonic() >= self._next or last:
            self._next = time.monotonic() + LINE_EVERY_S
            self.say("progress", "", **report | {"endpoints": [_readable(e) for e in report["endpoints"]]})

    def say(self, event: str, words: str, **facts: Any) -> None:
        line = {"event": event, "time": _utc(time.time())} | {k: v for k, v in facts.items() if k != "time"}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def _readable(endpoint: EndpointState) -> dict[str, Any]:
    held = endpoint["held"]
    return {**endpoint, "held": held and {"why": held["why"], "until": _utc(held["until"])}}


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Notes(logging.Handler):
    def __init__(self, face: Face) -> None:
        super().__init__(logging.WARNING)
        self._face = face

    def emit(self, record: logging.LogRecord) -> None:
        self._face.note(record.getMessage())


@contextmanager
def warnings_to(face: Face) -> Iterator[None]:
    """Shows the package's warnings as notes."""
    log, handler = logging.getLogger("rlaif"), _Notes(face)
    log.addHandler(handler)
    was, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = was
        log.removeHandler(handler)


class _Above(Stream):
    """Takes what is printed, line by line, to have it shown above the display."""

    def __init__(self, inner: TextIO, face: Face) -> None:
        super().__init__(inner)
        self._face = face
        self._begun: dict[int, str] = {}

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        *lines, rest = (self._begun.get(thread, "") + text).split("\n")
        self._begun[thread] = rest
        if lines:
            self._show("\n".join(lines))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def rest(self) -> None:
        """Shows the lines that were begun and not ended."""
        for text in filter(None, self._begun.values()):
            self._show(text)

    def _show(self, text: str) -> None:
        self._face.later(lambda: self._face.voice.say("print", text))


@contextmanager
def prints_to(face: Face) -> Iterator[None]:
    """Where the display and stderr are on one terminal: what is printed meanwhile is shown above the display."""
    out, err = sys.stdout, sys.stderr
    if not face.is_live or not err.isatty():
        yield
        return
    above = _Above(err, face)
    sys.stdout = sys.stderr = cast(TextIO, above)
    try:
        yield
    finally:
        above.rest()
        sys.stdout, sys.stderr = out, err


def print_plain(text: str, console: Console) -> None:
    """Prints text as it is; lines are wrapped on a terminal alone."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
