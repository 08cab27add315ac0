"""Measure what rlaif adds to an endpoint: CPU, waiting, and what faults cost; and other tools on the same work.

The test server (tests/server.py) answers in a process of its own on loopback; every client runs in a fresh process, with
128 requests in flight. The work is four samples and one judgement a prompt: two requests where the endpoint honours n,
five where it ignores n and answers each with one choice. Prompts have about 40 words, answers about 10. Four parts:

client        An instant server. CPU ms/request: user and system time of rlaif's process around `run.wait()`, over its
              requests: reading prompts, opening the ledger, requests and commits, the ranking, dpo.jsonl. "bare" is an
              aiohttp loop that sends the very same bodies, parses the answers and does nothing else. CPU / bare is the median
              ratio of neighbouring runs. Imports are in neither, but in the wall time of the process; the last row is
              the `rlaif` command with the judge `pairwise`, its whole process in both columns.
alternatives  The same work with distilabel, Curator and NVIDIA Data Designer, each with its own pipeline and without a
              cache, in a virtual environment under --alternatives DIR, where it is installed once. CPU ms/row is of the whole
              process, over prompts.
latency       A server that answers after 0.5 s. wall/ideal: wall time of `run.wait()` over requests * 0.5 s / 128, so 1.00
              means that nothing but the server's latency is waited for.
faults        30 % of the requests meet a 429 (with a Retry-After, for which all calls wait), a 500, a 503, a reset or HTML,
              after 20 ms, or cut JSON, after the time of an answer. calls: requests over those of a clean run / (1 - 0.3),
              which is what is needed. wall: over the clean run's. same file: whether dpo.jsonl is what the clean run wrote,
              byte by byte. finished: runs that ended within 20 times the clean run's time.

"first to last" is the time between the first and the last request as the server saw them. Every number is the median of
the repeats, in alternating order; ranges show the noise. A server on the same machine takes its share of the cores: "server
busy" is its CPU time over the time from the first request to the last.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import _alternatives
from _server import ROOT, Room, say, serving, show, table
from _work import Failed, Ran, alternating, first_to_last, machine, middle, run, server_cpu_s, spread, write_prompts
from helpers import COMMAND, write_rows

IN_FLIGHT = 128
LATENCY_S = 0.5
FAULT_SHARE = 0.3
FAULTS = "server_error,status_503,reset,cut_json,html"
REFUSALS = {"0.05 s": "rate_limit", "0.5 s": "hold"}
FAULT_LATENCIES = (0.1, 0.5)
FAULT_AFTER_S = 0.02
_LIMIT_S = 300.0
_TOO_LONG = 20
CLIENTS = ROOT / "benchmarks" / "clients"

Command = Callable[[Room, Path], Sequence[object]]
"""A client's command, for an endpoint and a directory for what it writes."""


@dataclass(frozen=True)
class Work:
    """So many prompts, a judge (a name as for --judge, or "one"), and whether the endpoint honours n."""

    prompts: int
    honoured: bool = True
    judge: str = "one"

    @property
    def behaviour(self) -> dict[str, Any]:
        """What the endpoint does with n."""
        return {} if self.honoured else {"most_choices": 1}

    @property
    def name(self) -> str:
        """For a table."""
        judged = "one judgement" if self.judge == "one" else f"{self.judge} judge"
        return f"{self.prompts:,} prompts, n {'honoured' if self.honoured else 'ignored'}, {judged}"


CLIENT_WORK = (Work(500), Work(500, honoured=False), Work(5000), Work(500, judge="pairwise"))
LATENCY_WORK = (Work(500), Work(500, honoured=False), Work(2000), Work(2000, honoured=False))


@dataclass(frozen=True)
class Seen:
    """A client's run: what its process cost, and what the server saw of it."""

    ran: Ran
    log: list[dict[str, Any]]
    server_cpu_s: float
    out: Path

    @property
    def cpu_s(self) -> float:
        """Around the work alone, where the client says so; of the whole process otherwise."""
        return float(self.ran.said.get("cpu_s", self.ran.cpu_s))

    @property
    def wall_s(self) -> float:
        """Around the work alone, where the client says so; of the whole process otherwise."""
        return float(self.ran.said.get("wall_s", self.ran.wall_s))

    @property
    def cpu_ms(self) -> float:
        """CPU time for a request."""
        return self.cpu_s / len(self.log) * 1000

    @property
    def first_to_last_s(self) -> float:
        """Between the first request and the last one."""
        return first_to_last(self.log)

    @property
    def pairs(self) -> bytes:
        """The export."""
        return (self.out / "dpo.jsonl").read_bytes()


class Bench:
    """Runs clients, each at an endpoint of its own, in a directory for prompts, run directories and bodies."""

    def __init__(self, endpoint: Callable[[str], Room], directory: Path) -> None:
        self._endpoint, self._directory, self._numbers = endpoint, directory, count(1)

    def prompts(self, number: int) -> Path:
        """The file of so many prompts."""
        path = self._directory / f"prompts-{number}.jsonl"
        return path if path.exists() else write_prompts(path, number)

    def rlaif(self, work: Work, *, limit_s: float = _LIMIT_S, **behaviour: Any) -> Seen:
        """The work done by rlaif, from Python. Raises Failed if it takes longer than `limit_s`."""

        def command(room: Room, out: Path) -> Sequence[object]:
            client = CLIENTS / "with_rlaif.py"
            return sys.executable, client, room.url, self.prompts(work.prompts), out, IN_FLIGHT, work.judge

        return self._watched(command, limit_s=limit_s, **work.behaviour, **behaviour)

    def command(self, work: Work) -> Seen:
        """The work done by the `rlaif` command; its judge is one that has a name."""

        def command(room: Room, out: Path) -> Sequence[object]:
            options = "--out", out, "--policy", room.model(), "--judge", work.judge, "--concurrency", IN_FLIGHT
            return *COMMAND, "generate", self.prompts(work.prompts), *options

        return self._watched(command, **work.behaviour)

    def bare(self, bodies: Sequence[Any], **behaviour: Any) -> Seen:
        """The bodies sent by a loop that does nothing else."""
        path = write_rows(self._directory / "bodies.jsonl", bodies)

        def command(room: Room, out: Path) -> Sequence[object]:
            return sys.executable, CLIENTS / "bare_loop.py", room.url, path, IN_FLIGHT

        return self._watched(command, **behaviour)

    def alternative(self, python: Path, client: str, work: Work) -> Seen:
        """The work done by another tool."""

        def command(room: Room, out: Path) -> Sequence[object]:
            return python, CLIENTS / client, room.url, self.prompts(work.prompts), out, IN_FLIGHT

        return self._watched(command, **work.behaviour)

    def _watched(self, command: Command, *, limit_s: float = _LIMIT_S, **behaviour: Any) -> Seen:
        """What a command does at a fresh endpoint, and in a fresh directory."""
        name = f"run{next(self._numbers)}"
        room, out = self._endpoint(name), self._directory / name
        room.set(**{"log": "full"} | behaviour)
        out.mkdir()
        before = server_cpu_s(room)
        ran = run(command(room, out), limit_s=limit_s)
        used = server_cpu_s(room) - before
        return Seen(ran, room.log(), used, out)


def client(bench: Bench, repeats: int) -> str:
    """CPU time beside a bare loop."""
    rows = []
    for work in CLIENT_WORK:
        runs: dict[str, list[Seen]] = defaultdict(list)
        bodies = [entry["body"] for entry in bench.rlaif(work).log]
        for repeat, name in alternating(("rlaif", "bare"), repeats):
            say(f"client: {work.name}, run {repeat + 1} of {repeats}: {name}")
            runs[name].append(bench.rlaif(work) if name == "rlaif" else bench.bare(bodies, **work.behaviour))
        bare = [seen.cpu_ms for seen in runs["bare"]]
        rows += [_client_row(work.name, name, seen, bare) for name, seen in runs.items()]
    last = CLIENT_WORK[-1]
    rows.append(_client_row(last.name, "rlaif (command)", [bench.command(last) for _ in range(repeats)], bare))
    columns = "work", "client", "requests", "CPU ms/request", "CPU / bare", "first to last s", "process s", "server busy"
    return table(columns, rows, names=2)


def _client_row(work: str, name: str, runs: Sequence[Seen], bare: Sequence[float]) -> list[str]:
    return [
        work,
        name,
        f"{len(runs[0].log):,}",
        spread([seen.cpu_ms for seen in runs], ".3f"),
        spread([seen.cpu_ms / other for seen, other in zip(runs, bare, strict=True)]),
        middle(seen.first_to_last_s for seen in runs),
        middle(seen.ran.wall_s for seen in runs),
        middle((seen.server_cpu_s / seen.first_to_last_s for seen in runs), ".0%"),
    ]


def alternatives(bench: Bench, repeats: int, directory: Path) -> str:
    """Other tools on the same work."""
    work, notes = Work(500), []
    runs: dict[str, list[Seen]] = defaultdict(list)
    tools: dict[str, Callable[[], Seen]] = {
        "rlaif": lambda: bench.rlaif(work),
        "rlaif, n ignored": lambda: bench.rlaif(Work(500, honoured=False)),
    }
    for tool in _alternatives.TOOLS:
        say(f"alternatives: {tool.name}")
        try:
            python, version = tool.installed(directory)
        except Failed as reason:
            notes.append(f"{tool.name}: not measured: {reason}")
        else:
            tools[f"{tool.name} {version}"] = _with(bench, python, tool.client, work)
    for repeat, name in alternating(list(tools), repeats):
        say(f"alternatives: run {repeat + 1} of {repeats}: {name}")
        try:
            runs[name].append(tools[name]())
        except Failed as reason:
            notes.append(f"{name}: {reason}")
    rows = [_alternative_row(name, runs[name], runs["rlaif"], work.prompts) for name in tools if runs[name]]
    columns = "tool", "requests", "first to last s", "/ rlaif", "process s", "/ rlaif", "CPU ms/row", "/ rlaif"
    return "\n\n".join([table(columns, rows), *notes])


def _with(bench: Bench, python: Path, client: str, work: Work) -> Callable[[], Seen]:
    return lambda: bench.alternative(python, client, work)


def _alternative_row(name: str, runs: Sequence[Seen], ours: Sequence[Seen], prompts: int) -> list[str]:
    cells = [name, f"{len(runs[0].log):,}"]
    measures: list[Callable[[Seen], float]] = [
        lambda seen: seen.first_to_last_s,
        lambda seen: seen.ran.wall_s,
        lambda seen: seen.ran.cpu_s / prompts * 1000,
    ]
    for measure in measures:
        own, other = [measure(seen) for seen in runs], statistics.median(map(measure, ours))
        cells += [spread(own), f"{statistics.median(own) / other:.1f}"]
    return cells


def latency(bench: Bench, repeats: int) -> str:
    """Wall time beside what the server's latency alone takes."""
    rows = []
    for work in LATENCY_WORK:
        runs = []
        for repeat in range(repeats):
            say(f"latency: {work.name}, run {repeat + 1} of {repeats}")
            runs.append(bench.rlaif(work, latency_s=LATENCY_S))
        requests = len(runs[0].log)
        ideal = requests * LATENCY_S / IN_FLIGHT
        walls = [seen.wall_s for seen in runs]
        overlaps = [f"{overlap(seen.log):.0%}" for seen in runs]
        ratios = spread([wall / ideal for wall in walls], ".3f")
        rows.append([work.name, f"{requests:,}", f"{ideal:.2f}", middle(walls), ratios, sorted(overlaps)[len(overlaps) // 2]])
    return table(("work", "requests", "ideal s", "wall s", "wall/ideal", "judged before the last sample"), rows)


def overlap(log: Sequence[dict[str, Any]]) -> float:
    """The share of judge calls that came before the last call for samples."""
    last = max(entry["time"] for entry in log if not entry["judge"])
    judged = [entry["time"] for entry in log if entry["judge"]]
    return sum(time < last for time in judged) / len(judged)


def faults(bench: Bench, repeats: int) -> str:
    """What faults cost."""
    rows = []
    for latency_s, (asks, refusal) in product(FAULT_LATENCIES, REFUSALS.items()):
        clean, faulty, work = list[Seen](), list[Seen](), Work(500)
        slow = {"latency_s": FAULT_AFTER_S, "service_s": latency_s - FAULT_AFTER_S}
        bad = {"fault_share": FAULT_SHARE, "faults": f"{refusal},{FAULTS}"}
        for repeat in range(repeats):
            say(f"faults: {latency_s:g} s, {refusal}, run {repeat + 1} of {repeats}")
            clean.append(bench.rlaif(work, **slow))
            with suppress(Failed):
                faulty.append(bench.rlaif(work, limit_s=_TOO_LONG * clean[-1].ran.wall_s, **slow, **bad))
        name = f"{work.name}, {latency_s:g} s"
        rows.append([name, asks, middle(seen.wall_s for seen in clean), *_fault_cells(clean, faulty)])
    return table(("work", "Retry-After", "clean s", "faulty s", "wall", "calls", "same file", "finished"), rows)


def _fault_cells(clean: Sequence[Seen], faulty: Sequence[Seen]) -> list[str]:
    finished = f"{len(faulty)} of {len(clean)}"
    if not faulty:
        return ["-", f"over {_TOO_LONG}", "-", "-", finished]
    walls, wall = [seen.wall_s for seen in faulty], statistics.median(seen.wall_s for seen in clean)
    needed = len(clean[0].log) / (1 - FAULT_SHARE)
    same = len({seen.pairs for seen in (*clean, *faulty)}) == 1
    ratios = spread([one / wall for one in walls])
    return [
        spread(walls),
        ratios,
        spread([len(seen.log) / needed for seen in faulty], ".3f"),
        "yes" if same else "NO",
        finished,
    ]


def _parts(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Bench], str]]]:
    only = args.only or ["client", "alternatives", "latency", "faults"]
    known: dict[str, Callable[[Bench], str]] = {
        "client": lambda bench: client(bench, args.repeats),
        "alternatives": lambda bench: alternatives(bench, args.repeats, args.alternatives),
        "latency": lambda bench: latency(bench, args.repeats),
        "faults": lambda bench: faults(bench, args.repeats),
    }
    for name, part in known.items():
        if name in only and (name != "alternatives" or args.alternatives is not None):
            yield name, part


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description="Measure what rlaif adds to an endpoint.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of everything (%(default)s)")
    parser.add_argument("--only", action="append", choices=("client", "alternatives", "latency", "faults"))
    parser.add_argument("--alternatives", type=Path, metavar="DIR", help="measure other tools too, installed under DIR")
    args = parser.parse_args()
    show(f"{machine()}; {IN_FLIGHT} in flight; median of {args.repeats} runs")
    for name, part in _parts(args):
        with serving() as endpoint, tempfile.TemporaryDirectory() as directory:
            show("", f"## {name}", part(Bench(endpoint, Path(directory))), f"then: {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
