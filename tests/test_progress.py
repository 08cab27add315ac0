"""What a run shows: on a real terminal (a pty), elsewhere, in JSON; and that losing its reader stops nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import COMMAND, Room, environment, read_rows, rlaif, start, write_prompts
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from test_live import START, endpoint, snapshot

from rlaif import display
from rlaif.live import Holds, Live, Report
from rlaif.voice import Face, Stream

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
pytestmark = pytest.mark.slow

OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
TALKER = """
import os, subprocess, sys

def talker(prompt, candidates):
    print("the judge says", prompt.id)
    sys.stdout.write("and " "more\\n")
    sys.stdout.buffer.write(b"")
    os.write(1, b"from below\\n")
    subprocess.run(["echo", "from a child"], check=True)
    return list(range(len(candidates)))
"""
QUIET = TALKER.replace('os.write(1, b"from below\\n")', "pass").replace(
    'subprocess.run(["echo", "from a child"], check=True)', "pass"
)


class Terminal:
    """A command on a pty of its own, which is its controlling terminal. `text` is all it has written, without escapes."""

    def __init__(self, *arguments: object, size: tuple[int, int] = (80, 24), **env: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        kept = environment(**({"TERM": "xterm"} | env))
        for name in ("COLUMNS", *({"CI", "NO_COLOR"} - set(env))):
            kept.pop(name, None)
        command = [sys.executable, "-c", OWN_TERMINAL, *COMMAND, *map(str, arguments)]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, env=kept, start_new_session=True, **streams)
        os.close(slave)
        self.raw, self.width = b"", size[0]

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw.decode())

    @property
    def shown(self) -> list[str]:
        """The lines that stand on the terminal, and those that were scrolled out of it."""
        lines, row, column = [""], 0, 0
        for found in re.finditer(r"\x1b\[([0-9;?]*)([a-zA-Z])|([^\x1b])", self.raw.decode()):
            number, command, letter = found.groups()
            if command == "A":
                row -= int(number or 1)
            elif (command, number) == ("K", "2"):
                lines[row] = ""
            elif letter == "\r":
                column = 0
            elif letter == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif letter:
                if column == self.width:
                    row, column = row + 1, 0
                    lines += [""] * (row == len(lines))
                lines[row] = lines[row].ljust(column)[:column] + letter + lines[row][column + 1 :]
                column += 1
            else:
                assert command == "m" or number == "?25", found.group()
        return [line.rstrip() for line in lines]

    def read(self, *, until: str | None = None, timeout_s: float = 60.0) -> str:
        """Reads until the words are there, or to the end."""
        end = time.monotonic() + timeout_s
        while until is None or until not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    got = os.read(self.master, 65536)
                except OSError:  # nobody holds the other end
                    got = b""
                if not got:
                    break
                self.raw += got
        return self.text

    def end(self) -> int:
        """Reads to the end; the exit status."""
        self.read()
        os.close(self.master)
        return self.process.wait(timeout=60)


def report(**more: Any) -> Report:
    one = Live(Path("nowhere")).add(snapshot(**more))
    return {**one, "eta_s": 4000.0, "calls_per_s": 12.3, "tokens_per_s": 4567.0}


def held(why: str = "429, Slow down.", for_s: float = 600.0) -> Any:
    return {"why": why, "until": START + for_s}


def json_lines(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    return lines


# Words


@given(
    st.integers(1, 200),
    st.integers(1, 60),
    st.lists(st.tuples(st.text(max_size=60), st.none() | st.text(max_size=60)), max_size=6),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_a_screen_of_any_size_is_kept_to(
    width: int, height: int, ends: list[tuple[str, str | None]], prompts: int, ascii_only: bool
) -> None:
    endpoints = [endpoint(name, held=None if why is None else held(why)) for name, why in ends]
    lines = display.screen(report(prompts=prompts, endpoints=endpoints), width, height, ascii_only=ascii_only)
    assert 1 <= len(lines) <= max(1, min(12, height - 1))
    assert all(cell_len(line.plain) <= max(1, width - 1) for line in lines)
    assert not any(letter in line.plain for line in lines for letter in "\n\r\x1b\x00")


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_what_stands_on_a_screen(size: tuple[int, int]) -> None:
    one = endpoint("http://one:8000/v1", in_flight=7, limit=8, ceiling=64, waiting=5, rate_limited=3, held=held())
    calls = {"policy": 48, "judge": 1200, "reused": 6, "faults": 0}
    now = report(
        done=250, calls=calls, tokens={"prompt": 10**6, "completion": 999}, cost_usd=1.2, budget_usd=9.0, endpoints=[one]
    )
    shown = "\n".join(line.plain for line in display.screen(now, *size))
    until = display.clock(START + 600, START)
    for words in (
        *("250 of 1,000", "25 %", "ETA 67 min", "48 policy, 1,200 judge, 6 reused", "1,000,999", "12.3 calls/s"),
        *("1.20 USD", "budget 9.00", "one:8000", f"waiting until {until}: 429, Slow down."),
    ):
        assert words in shown, shown
    for words in ("8 of 64", "4,567 tokens/s") if size == (80, 24) else ("7/8 in flight, 5 wait, 3 x 429",):
        assert words in shown, shown


def test_where_all_endpoints_have_no_room_those_that_wait_are_shown() -> None:
    ends = [endpoint(f"e{i}", held=held() if i == 7 else None) for i in range(9)]
    shown = [line.plain for line in display.screen(report(endpoints=ends), 80, 24)]
    assert any(line.startswith("e7") for line in shown) and shown[-1] == "and 4 more endpoints"
    assert any("e7 waiting until" in line.plain for line in display.screen(report(endpoints=ends), 80, 7))


def test_times_are_those_of_a_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        at = [display.clock(START + after, START) for after in (0, 100, 700, 86400, 20 * 86400)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert at == ["22:13:20", "22:15:00", "22:25", "Wed 22:14", "2023-12-04"]
    assert [display.duration(s) for s in (0, 99, 100, 5000, 7260, 200_000)] == [
        "0 s",
        "99 s",
        "2 min",
        "83 min",
        "2 h 01 min",
        "2 d 7 h",
    ]


def test_holds_are_told_as_they_begin_and_end() -> None:
    for form in ("text", "json"):
        out, holds = io.StringIO(), Holds()
        face = Face(Stream(out), form)  # type: ignore[arg-type]
        for hold in (None, held("429,\nSlow\x1b[2J down."), None):
            now = report(endpoints=[endpoint(held=hold)])
            face.voice.see(now, holds.changes(now), last=False)
        if form == "text":
            assert (
                out.getvalue() == f"one: waiting until {display.clock(START + 600, START)}: 429, Slow [2J down.\none: goes on\n"
            )
        else:
            first, second = json_lines(out.getvalue())
            assert (first["event"], first["endpoint"], first["held"], first["until"]) == (
                "hold",
                "one",
                True,
                "2023-11-14T22:23:20.000Z",
            )
            assert (second["held"], second["why"], second["until"]) == (False, None, None)


# On a terminal


def generate(room: Room, folder: Path, count: int = 12, *more: object) -> list[object]:
    prompts = write_prompts(folder / "prompts.jsonl", count)
    return ["generate", prompts, "--policy", room.model(), "-n", 2, "--out", folder / "run", *more]


@pytest.mark.parametrize(("size", "env"), [((80, 24), {}), ((40, 12), {"NO_COLOR": "1"})])
def test_display_on_a_terminal(room: Room, tmp_path: Path, size: tuple[int, int], env: dict[str, str]) -> None:
    room.set(latency_s=0.3)
    terminal = Terminal(*generate(room, tmp_path, 12, "--concurrency", 4), size=size, **env)
    for _ in range(3):  # repainted in place
        terminal.read(until=" of 12")
        assert sum(" of 12" in line for line in terminal.shown) <= 1 and len(terminal.shown) <= size[1]
        assert all(len(line) < size[0] for line in terminal.shown)
        time.sleep(0.4)
    assert terminal.end() == 0 and len(read_rows(tmp_path / "run" / "dpo.jsonl")) == 12
    assert any(line.startswith("Next:") for line in terminal.shown)
    assert terminal.shown[0] == "── prompt"  # the display is taken away
    assert terminal.raw.count(b"\x1b[?25h") >= 2 and not re.search(rb"\x1b\[\?25l(?!\x1b\[\?25h)", terminal.raw)
    assert bool(re.search(rb"\x1b\[([0-9]+;)*3[0-9]m", terminal.raw)) == (not env)


@pytest.mark.parametrize("env", [{"CI": "true"}, {"TERM": "dumb"}])
def test_terminals_of_machines_get_plain_lines(tmp_path: Path, env: dict[str, str]) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 5)
    terminal = Terminal("generate", prompts, "--policy", "fake/oracle", "--out", tmp_path / "run", **env)
    assert terminal.end() == 0
    assert (
        b"\x1b[2K" not in terminal.raw
        and b"\x1b[?25" not in terminal.raw
        and "5 pairs from 5 prompts" in " ".join(terminal.text.split())
    )


def test_a_terminal_without_these_letters_gets_others(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.2)
    terminal = Terminal(*generate(room, tmp_path), PYTHONIOENCODING="ascii")
    assert terminal.end() == 0
    assert (
        re.search(r"\d of 12 [#-]{5,}", terminal.text)
        and "-- prompt" in terminal.text
        and "?" not in terminal.text.split("-- prompt")[0]
    )


def test_prints_of_a_judge_stand_above_the_display(room: Room, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(
        TALKER.replace('    os.write(1, b"from below\\n")\n', "").replace("    subprocess.run", "    #")
    )
    terminal = Terminal(*generate(room, tmp_path, 4, "--judge", f"{tmp_path}/talker.py:talker"))
    assert terminal.end() == 0
    for i in range(4):
        assert terminal.shown.count(f"the judge says p{i}") == 1
    assert terminal.shown.count("and more") == 4 and not any(" of 4" in line for line in terminal.shown)


@pytest.mark.parametrize("when", ["at work", "before the first line"])
def test_a_terminal_that_vanishes_stops_nothing(room: Room, tmp_path: Path, when: str) -> None:
    (tmp_path / "talker.py").write_text(QUIET)
    room.set(latency_s=0.2)
    terminal = Terminal(*generate(room, tmp_path, 12, "--concurrency", 4, "--judge", f"{tmp_path}/talker.py:talker"))
    if when == "at work":
        terminal.read(until="of 12")
    else:
        while room.count() == 0:
            time.sleep(0.01)
    os.close(terminal.master)  # the kernel sends SIGHUP, and every write fails with EIO
    assert terminal.process.wait(timeout=60) == 0
    assert len(read_rows(tmp_path / "run" / "dpo.jsonl")) == 12


def test_a_terminal_that_stands_still_holds_up_nothing(room: Room, tmp_path: Path) -> None:
    """Nobody reads from it, as after Ctrl-S, and the judge prints more than fits."""
    (tmp_path / "loud.py").write_text(
        "def loud(prompt, candidates):\n    print('x' * 20000)\n    return [float(len(c.text)) for c in candidates]\n"
    )
    terminal = Terminal(*generate(room, tmp_path, 40, "--judge", f"{tmp_path}/loud.py:loud"))
    summary = tmp_path / "run" / "summary.json"
    for _ in range(300):
        if summary.exists():
            break
        time.sleep(0.1)
    assert json.loads(summary.read_text())["prompts"] == 40
    assert terminal.end() == 0


def test_interrupt_on_a_terminal(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.5)
    terminal = Terminal(*generate(room, tmp_path, 200, "--concurrency", 4))
    terminal.read(until="of 200")
    os.write(terminal.master, b"\x03")
    terminal.read(until="stopping: waiting for the calls in flight")
    assert terminal.end() == 130 and "interrupted; the same command goes on" in terminal.text
    assert not any(line.startswith(("prompts ", "endpoint ")) for line in terminal.shown)  # in spite of the ^C


# Elsewhere


def test_plain_lines_without_escapes(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    done = rlaif("generate", prompts, "--policy", "fake/oracle", "--out", tmp_path / "run")
    assert "\x1b" not in done.stdout and "3 pairs from 3 prompts" in done.stdout and done.stderr == ""


def test_a_line_every_ten_seconds() -> None:
    out = io.StringIO()
    face = Face(Stream(out), "text")
    face.voice._next = 0.0  # type: ignore[attr-defined] - ten seconds are over
    for _ in range(3):
        face.voice.see(report(done=250, cost_usd=0.5), [], last=False)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith(
        "250/1000 prompts, calls: 0 policy, 0 judge, 0 reused; 0 tokens; 12.3 calls/s; 0.50 USD; about 67 min"
    )


def test_a_reader_that_goes_away_stops_nothing(room: Room, tmp_path: Path) -> None:
    """As in `rlaif generate ... | head -0`."""
    process = start(*generate(room, tmp_path, 12, "--log-format", "json"))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None and process.stderr.read() == ""
    process.stderr.close()
    assert len(read_rows(tmp_path / "run" / "dpo.jsonl")) == 12


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_from_the_start(tmp_path: Path, closed: str) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    line = f"exec {COMMAND[0]} generate {prompts} --policy fake/oracle --out {tmp_path}/run {closed}"
    done = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "run" / "dpo.jsonl")) == 3


# JSON


@pytest.mark.parametrize("into_one_pipe", [False, True])
def test_every_line_is_json_whatever_the_judge_prints(room: Room, tmp_path: Path, into_one_pipe: bool) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    command = [
        *COMMAND,
        *map(str, generate(room, tmp_path, 6, "--judge", f"{tmp_path}/talker.py:talker", "--log-format", "json")),
    ]
    where = subprocess.DEVNULL if into_one_pipe else subprocess.PIPE
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=where, env=environment(), text=True, timeout=60, check=False)
    events = json_lines(done.stdout)
    assert done.returncode == 0 and [e["event"] for e in events[-2:]] == ["progress", "done"]
    assert events[-2]["done"] == 6 and events[-1]["pairs"] == 6 and events[-1]["state"] == "done"
    assert Path(events[-1]["file"]) == tmp_path / "run" / "dpo.jsonl"
    if not into_one_pipe:
        assert all(done.stderr.count(words) == 6 for words in ("the judge says", "and more", "from below", "from a child"))


def test_notes_are_events(room: Room, tmp_path: Path) -> None:
    room.set(logprobs="ignored")
    events = json_lines(rlaif(*generate(room, tmp_path, 3, "--log-format=json")).stdout)
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert len(notes) == 1 and "falls back to verdicts as text" in notes[0]


@pytest.mark.parametrize(
    ("more", "status", "event", "kind"),
    [
        (["-n", "x"], 2, "error", "usage"),
        (["--extra-body", "{"], 2, "error", "input"),
        (["--constitution", "none-such"], 2, "error", "input"),
        ([], 3, "stop", "auth"),
        (["--dry-run"], 0, "done", None),
    ],
)
def test_the_end_of_a_command_is_an_event(
    room: Room, tmp_path: Path, more: list[str], status: int, event: str, kind: str | None
) -> None:
    room.set(failure="auth")
    done = rlaif(*generate(room, tmp_path, 3, "--log-format", "json", *more), expect=status)
    last = json_lines(done.stdout)[-1]
    assert (last["event"], last.get("kind"), last.get("exit_status", 0)) == (event, kind, status)
    assert done.stderr == "" and (status == 0 or last["message"])


def test_a_log_format_that_does_not_exist(tmp_path: Path) -> None:
    assert "'yaml' is neither text nor json" in rlaif("generate", "x.jsonl", "--log-format", "yaml", expect=2).stderr


def test_interruption_is_an_event(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.3)
    process = start(*generate(room, tmp_path, 100, "--concurrency", 4, "--log-format", "json"))
    while room.count() < 8:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    events = json_lines(out)
    assert process.returncode == 130 and err == ""
    assert [e["event"] for e in events] == ["note", "progress", "stop"]
    assert events[1]["state"] == "stopped" and events[1]["calls"]["policy"] > 0 and events[2]["kind"] == "interrupted"


def test_what_a_stop_left_behind_is_said(room: Room, tmp_path: Path) -> None:
    """Broken off by a second signal: the calls in flight may be billed; and what has been paid so far."""
    (tmp_path / "prices.yaml").write_text("m: {input: 1, output: 1}\n")
    room.set(latency_s=60)
    process = start(*generate(room, tmp_path, 12, "--concurrency", 4, "--prices", tmp_path / "prices.yaml"))
    while room.count() < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; the same command goes on" in err
    assert "0 of 12 prompts are finished" in out and "so far it cost 0.00 USD" in out
    assert "4 calls in flight were broken off: they may be billed" in out


def test_a_probe_is_a_run_that_is_shown_and_can_be_stopped(room: Room, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("m: {input: 1, output: 1}\n")
    command = generate(room, tmp_path, 12, "--prices", tmp_path / "prices.yaml", "--dry-run")
    room.set(latency_s=0.5)
    process = start(*command, "--probe", 4, "--log-format", "json")
    while room.count() < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    events = json_lines(out)
    assert process.returncode == 130 and [e["event"] for e in events] == ["note", "progress", "stop"]
    assert (events[1]["prompts"], events[1]["calls"]["policy"]) == (4, 4)
    room.set()
    assert "4 of the prompts are finished for 0.00" in (said := rlaif(*command, "--probe", 4).stdout) and "prompts: 12" in said
    asked = room.count()
    assert "4 of the prompts are finished for 0.00" in rlaif(*command).stdout
    assert "temperature was 1.0, now 0.5" in rlaif(*command, "--temperature", 0.5, expect=2).stderr
    assert room.count() == asked and room.repeats() == 0


def test_a_hangup_alone_stops_nothing(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.2)
    process = start(*generate(room, tmp_path, 12, "--concurrency", 4))
    while room.count() < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_stream_never_raises(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with contextlib.closing(open(write, "w")) as file:
        stream = Stream(file)
        assert not stream.gone and stream.write("x" * 100_000) == 100_000
        stream.flush()
        assert stream.gone and stream.write("y") == 1 and not stream.isatty()
    assert Stream(None).write("x") == 1 and not Stream(None).isatty()


def test_what_fails_in_the_writing_ends_nothing() -> None:
    out, face = io.StringIO(), None
    face = Face(Stream(out), "text")
    acts: list[Callable[[], None]] = [lambda: Text("x").no_such_thing(), lambda: face.voice.say("note", "later")]  # type: ignore[attr-defined]
    for act in acts:
        face.later(act)
    face.later(lambda: face.finish())
    face.write()
    assert "later" in out.getvalue() and "the display has failed, the run goes on: AttributeError" in out.getvalue()
