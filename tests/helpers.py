"""What several test files share: the command line as a process, one endpoint of the test server, a run's files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import sqlite3
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing import reduction
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.request import Request, urlopen

import forked
import pytest
from server import QUALITY

from rlaif import records
from rlaif.ledger import Ledger
from rlaif.types import Record

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["rlaif.cli", "aiohttp", "scipy.special"])
COMMAND = [str(Path(sys.executable).with_name("rlaif"))]
ROW_KEYS = ["id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "p_chosen", "p_source", "judge", "flip"]


@dataclass(frozen=True)
class Room:
    """One endpoint of the test server, with its own behaviour and log."""

    base: str

    @property
    def url(self) -> str:
        return self.base + "/v1"

    def model(self, name: str = "m") -> str:
        return f"openai/{name}@{self.url}"

    def set(self, **behaviour: Any) -> None:
        """Replaces the behaviour: what is not named is as a perfect endpoint does it."""
        urlopen(Request(self.base + "/behaviour", json.dumps(behaviour).encode()), timeout=30).close()

    def _get(self, path: str) -> Any:
        with urlopen(self.base + path, timeout=30) as response:
            return json.load(response)

    def log(self) -> list[dict[str, Any]]:
        """Every request so far, in order."""
        return list(self._get("/log")["log"])

    def peak(self) -> int:
        """The most calls that were in flight together."""
        return int(self._get("/log")["peak"])

    def in_flight(self) -> int:
        """How many calls are in flight now."""
        return int(self._get("/log")["in_flight"])

    def count(self) -> int:
        """How many requests there were."""
        return int(self._get("/count"))

    def bill(self, *, every: bool = False) -> dict[str, Any]:
        """What was worked out and what was written whole, by model; and how often requests were billed (`every`: all)."""
        return dict(self._get("/bill?every=1" if every else "/bill"))

    def rate(self) -> dict[str, float]:
        """Requests allowed, accepted and refused, and those that came before the client was told to come back."""
        return dict(self._get("/rate"))

    def calls(self) -> tuple[int, int]:
        """(policy calls, judge calls) so far."""
        log = self.log()
        return sum(not e["judge"] for e in log), sum(e["judge"] for e in log)

    def repeats(self) -> int:
        """How many requests were asked before, word by word."""
        return sum(times - 1 for times in Counter(e["id"] for e in self.log()).values())


@dataclass
class Books:
    """A purchase that notes what a model tells it."""

    begun: int = 0
    kept: list[bytes] = field(default_factory=list)
    faults: list[tuple[str, int | None, bytes]] = field(default_factory=list)

    def begin(self) -> None:
        self.begun += 1

    async def keep(self, body: bytes) -> None:
        self.kept.append(body)

    async def fault(self, kind: str, status: int | None, body: bytes) -> None:
        self.faults.append((kind, status, body))


def environment(**more: str) -> dict[str, str]:
    """The environment without what would change the meaning of a command, and without planted checks of judges."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "RLAIF_")) and not k.lower().endswith("_proxy")}
    return kept | {"NO_COLOR": "1", "COLUMNS": "200", "RLAIF_CHECKS": "0", "HF_HUB_OFFLINE": "1"} | more


def rlaif(*arguments: object, expect: int = 0, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command; fails unless it ends with the status `expect` and without a traceback.

    In a process of its own, forked from one that has loaded the package: loading takes most of the time of a short command.
    """
    words = ["rlaif", *map(str, arguments)]
    with TemporaryFile() as out, TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        files = [reduction.DupFd(file.fileno()) for file in (nothing, out, err)]
        process = _FORKS.Process(target=forked.run, args=(words, files, cwd or Path.cwd(), environment(**env)))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, 120)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode().replace("\r\n", "\n"))
    done = subprocess.CompletedProcess(words, process.exitcode or 0, *said)
    process.close()
    assert done.returncode == expect, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    return done


def command(*arguments: object, expect: int = 0) -> tuple[str, str]:
    """Runs the command in this process, where what it needs is loaded once; (stdout, stderr). Fails unless it ends so."""
    from rlaif.cli import app

    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = app(list(map(str, arguments)), standalone_mode=False)
    assert (status or 0) == expect, (status, out.getvalue()[-3000:], err.getvalue()[-3000:])
    return out.getvalue(), err.getvalue()


def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Starts the command and does not wait for it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **more,
    )


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs this code in a process of its own."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def in_namespace(setup: str, *commands: Sequence[str]) -> str:
    """What the commands print where `setup`, a shell command, has mounted file systems that nobody else sees.

    Skips the test where the kernel lets this user mount nothing.
    """
    script = f"{{ {setup}; }} || exit 99\n" + "\n".join(map(shlex.join, commands))
    command = ["unshare", "-rm", "sh", "-ec", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment())
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) to mount a file system of a known size")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_prompts(path: Path, count: int) -> Path:
    """A file of `count` prompts p0, p1, ..."""
    return write_rows(path, ({"id": f"p{i}", "prompt": f"Question {i}: why?"} for i in range(count)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def stored_records(out: Path) -> list[Record]:
    """The finished records of a run directory."""
    with closing(Ledger.read(out)) as ledger:
        return [records.load(records.load_prompt(*row[:3])[0], row[3]) for row in ledger.records()]


def committed(out: Path) -> set[str]:
    """The requests whose good responses are in the ledger, by the test server's ids."""
    found = set()
    with closing(sqlite3.connect(f"file:{out / 'run.sqlite'}?mode=ro", uri=True)) as db:
        for (body,) in db.execute("SELECT body FROM calls"):
            try:
                found.add(json.loads(zlib.decompress(body))["id"])
            except (ValueError, KeyError):
                continue
    return found


def quality(text: str) -> float:
    """The hidden quality of an answer of the test server."""
    return float(QUALITY.findall(text)[-1])


def qualities(row: dict[str, Any]) -> tuple[float, float]:
    """Those of chosen and rejected."""
    return quality(row["chosen"][0]["content"]), quality(row["rejected"][0]["content"])
