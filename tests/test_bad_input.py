"""Wrong usage and wrong input: one message that says what, where and what to do; exit status 2; nothing spent, no traceback."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import Room, environment, read_rows, rlaif, start, summary, write_prompts, write_rows
from typer.testing import CliRunner

from rlaif.cli import app

pytestmark = pytest.mark.slow

GOOD = b'{"prompt": "Why?"}\n'


def refused(room: Room, *arguments: object, command: str = "generate") -> str:
    """What the command says when it refuses; fails if anything was spent. In this process: there are many of them."""
    done = CliRunner().invoke(app, [command, *map(str, arguments)], env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None})
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    return one_message(room, done.stderr)


def refused_file(room: Room, path: Path, *more: object) -> str:
    """As `refused`, for a file of prompts and in a process of its own; fails if a run directory was made."""
    out = path.parent / "run"
    done = rlaif("generate", path, "--policy", room.model(), "--out", out, *more, expect=2)
    assert not out.exists()
    return one_message(room, done.stderr)


def one_message(room: Room | None, stderr: str) -> str:
    """The one line that was said; fails if anything was asked of the `room`."""
    assert room is None or room.count() == 0
    lines = stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


# Prompts


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "JSON"),
        (b'{"prompt": " \\n\\t"}', "empty"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt'"),
        (b'{"prompt": "Wh\xff?"}', "byte 15"),
        (b'{"prompt": "half a pair \\ud800"}', "surrogate"),
        (b'{"prompt": "Why?", "id": "first"}', "'first'"),
    ],
    ids=["json", "empty", "twice", "utf-8", "surrogate", "id"],
)
def test_bad_line_in_the_middle_is_named_by_file_and_line(room: Room, tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "How?", "id": "first"}\n' + GOOD + line + b"\n" + GOOD)
    said = refused_file(room, path)
    assert f"{path}:3" in said and why in said


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.jsonl", None, "no file"),
        ("empty.jsonl", b"", "no prompts"),
        ("utf16.jsonl", '{"prompt": "Why?"}\n'.encode("utf-16"), "UTF-16"),
        ("prompts.xml", GOOD, "kind"),
    ],
)
def test_bad_file_is_named(room: Room, tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    said = refused_file(room, path)
    assert name in said and why in said


def test_file_that_cannot_be_read(room: Room, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.mkdir()
    (path / "inside").write_text("x")
    assert "prompts.jsonl" in refused_file(room, path)


@pytest.mark.parametrize("name", ["bom", "crlf", "no-final-newline", "blank-lines"])
def test_files_as_other_systems_write_them_are_accepted(room: Room, tmp_path: Path, name: str) -> None:
    text = {
        "bom": b"\xef\xbb\xbf" + GOOD,
        "crlf": GOOD.replace(b"\n", b"\r\n") * 2,
        "no-final-newline": GOOD[:-1],
        "blank-lines": b"\n" + GOOD + b"\r\n   \n",
    }[name]
    path, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    path.write_bytes(text)
    rlaif("generate", path, "--policy", room.model(), "--out", out, "-n", 2)
    assert {e["body"]["messages"][0]["content"] for e in room.log() if not e["judge"]} == {"Why?"}
    assert len(read_rows(out / "dpo.jsonl")) == (2 if name == "crlf" else 1)


def test_separators_inside_a_line_are_text(room: Room, tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\u0085four\x0bfive\x0csix 🙂 \x1c end"
    path, out = write_rows(tmp_path / "p.jsonl", [{"prompt": odd}]), tmp_path / "run"
    rlaif("generate", path, "--policy", room.model(), "--out", out, "-n", 2)
    (row,) = read_rows(out / "dpo.jsonl")
    assert row["prompt"][0]["content"] == odd
    assert "\u2028".encode() in (out / "dpo.jsonl").read_bytes()


def test_repeated_prompts_are_items_of_their_own(room: Room, tmp_path: Path) -> None:
    path, out = write_rows(tmp_path / "p.jsonl", [{"prompt": "Why?"}] * 3), tmp_path / "run"
    rlaif("generate", path, "--policy", room.model(), "--out", out, "-n", 2)
    first, second, third = (r["id"] for r in read_rows(out / "dpo.jsonl"))
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert len({e["body"]["seed"] for e in room.log() if not e["judge"]}) == 3


def test_repeats_are_left_out_on_request_and_the_same_command_resumes(room: Room, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("Why?", "Why?", "How?", "Why?", "When?")]
    path, out = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "run"
    command = ["generate", path, "--policy", room.model(), "--out", out, "-n", 2, "--dedupe"]
    assert "rows left out" in (said := rlaif(*command, "--limit", 2).stdout) and "(--dedupe): 1" in said
    assert [r["prompt"][0]["content"] for r in read_rows(out / "dpo.jsonl")] == ["Why?", "How?"]
    asked = room.count()
    assert "(--dedupe): 2" in rlaif(*command).stdout
    assert room.count() == asked * 3 // 2
    write_rows(path, [*rows, {"prompt": "How?"}])
    rlaif(*command)
    assert "rows left out" not in rlaif(*command).stdout  # an unchanged file is not read again
    assert [r["prompt"][0]["content"] for r in read_rows(out / "dpo.jsonl")] == ["Why?", "How?", "When?"]
    assert room.count() == asked * 3 // 2 and room.repeats() == 0
    said = one_message(None, rlaif(*command[:-1], expect=2).stderr)
    assert "prompt 2" in said and "the earlier run was made with --dedupe" in said
    assert room.count() == asked * 3 // 2


def test_a_run_with_repeats_is_not_continued_without_them(room: Room, tmp_path: Path) -> None:
    path, out = write_rows(tmp_path / "p.jsonl", [{"prompt": text} for text in ("Why?", "How?", "Why?")]), tmp_path / "run"
    rlaif("generate", path, "--policy", room.model(), "--out", out, "-n", 2)
    said = one_message(
        None, rlaif("generate", path, "--policy", room.model(), "--out", out, "-n", 2, "--dedupe", expect=2).stderr
    )
    assert "prompt 3" in said and "is gone" in said and "made without --dedupe" in said


def test_comparisons_that_repeat_are_left_out(room: Room, tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "candidates": given} for given in (["a", "b"], ["a", "b"], ["a", "c"])]
    path, out = write_rows(tmp_path / "c.jsonl", rows), tmp_path / "run"
    said = rlaif("judge", path, "--judge-model", room.model(), "--out", out, "--dedupe").stdout
    assert "(--dedupe): 1" in said and summary(out)["prompts"] == 2


def test_what_is_no_text_is_replaced_on_request(room: Room, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    path.write_bytes(b'{"prompt": "Wh\xff?"}\n' + GOOD + b'{"prompt": "half a pair \\ud800"}\n')
    command = ["generate", path, "--policy", room.model(), "--out", out, "-n", 2]
    said = one_message(room, rlaif(*command, expect=2).stderr)
    assert f"{path}:1" in said and "--replace" in said
    assert "(--replace): 2" in rlaif(*command, "--replace").stdout
    assert [r["prompt"][0]["content"] for r in read_rows(out / "dpo.jsonl")] == ["Wh\ufffd?", "Why?", "half a pair \ufffd"]
    asked = room.count()
    assert "--replace)" not in rlaif(*command, "--replace").stdout and room.count() == asked
    notes = [
        json.loads(line)
        for line in rlaif(*command, "--config", out / "config.yaml", "--limit", 3, "--log-format", "json").stdout.splitlines()
    ]
    assert [n["message"][-14:] for n in notes if n["event"] == "note"] == ["(--replace): 2"]
    assert f"{path}:1" in one_message(None, rlaif(*command, expect=2).stderr) and room.count() == asked


def test_the_plan_counts_the_prompts_that_stay(room: Room, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(GOOD + GOOD + b'{"prompt": "half \\ud83d"}\n')
    said = rlaif("generate", path, "--policy", room.model(), "--out", tmp_path / "run", "--dry-run", "--dedupe", "--replace")
    assert "prompts: 2" in said.stdout and room.count() == 0
    assert said.stderr.count("(--dedupe): 1") == said.stderr.count("(--replace): 1") == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Why?"}, "`candidates`"),
        ({"prompt": "Why?", "candidates": "a"}, "`candidates`"),
        ({"prompt": "Why?", "candidates": ["a", 7]}, "candidate 2"),
        ({"prompt": "Why?", "candidates": [{"answer": "a"}]}, "candidate 1"),
        ({"prompt": "Why?", "candidates": [{"text": "a", "score": "high"}]}, "score"),
        ({"candidates": ["a", "b"]}, "`prompt`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_candidates_are_named_by_line(room: Room, tmp_path: Path, row: object, why: str) -> None:
    path = write_rows(tmp_path / "c.jsonl", [{"prompt": "Why?", "candidates": ["a", "b"]}, row])
    said = refused(room, path, "--judge-model", room.model(), "--out", tmp_path / "run", command="judge")
    assert f"{path}:2" in said and why in said


# Names and settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "gpt-4"], ["'gpt-4'", "openai/NAME"]),
        (["--policy", "openai/"], ["openai/"]),
        (["--policy", "openai/m@http://"], ["http://host:port"]),
        (["--policy", "openai/m@http://me:secret@127.0.0.1:1/v1"], ["password", "OPENAI_API_KEY"]),
        (["--policy", "openai/m@http://127.0.0.1:1/v1?key=secret"], ["query", "OPENAI_API_KEY"]),
        (["--policy", "openai/m@http://127.0.0.1:1/v1#secret"], ["query", "OPENAI_API_KEY"]),
        (["--policy", "openai/m@127.0.0.1:8000/v1"], ["openai/NAME@http://127.0.0.1:8000/v1"]),
        (["--policy", "openai/m@localhost:8000"], ["openai/NAME@http://localhost:8000"]),
        (["--policy", "openai/m@models.example.com/v1"], ["openai/NAME@http://models.example.com/v1"]),
        (["--policy", "openai/m@https://models.example.com/v1"], ["needs a key", "OPENAI_API_KEY"]),
        (["--policy", "fake/nothing"], ["fake/nothing", "fake/oracle"]),
        (["--policy", "gguf/gone.gguf"], ["gone.gguf"]),
        (["--policy", "hf/gpt2"], ["hf/gpt2"]),
        (["--judge", "nobody"], ["'nobody'", "pairwise"]),
        (["--judge", "gone.yaml"], ["'gone.yaml'"]),
        (["--judge", "gone.py:judge"], ["gone.py"]),
        (["--judge-model", "nothing"], ["'nothing'"]),
        (["--constitution", "mine"], ["'mine'", "hhh"]),
        (["-n", "1"], ["one candidate"]),
        (["--timeout", "0"], ["timeout"]),
        (["--extra-body", "{"], ["--extra-body", "JSON"]),
        (["--extra-body", "[1]"], ["--extra-body", "object"]),
        (["--extra-body", '{"x": NaN}'], ["--extra-body"]),
        (["--extra-body", '{"n": 2}'], ["'n'", "use -n"]),
        (["--extra-body", '{"x": 1, "messages": []}'], ["'messages'"]),
        (["--config", "gone.yaml"], ["gone.yaml"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") else "",
)
def test_bad_option_is_named(room: Room, tmp_path: Path, options: list[str], words: list[str]) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    policy = [] if options[0] == "--policy" else ["--policy", room.model()]
    said = refused(room, prompts, *policy, "--out", tmp_path / "run", *options)
    assert all(word in said for word in words), said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("end", ["", "/", "/chat/completions"])
def test_one_policy_under_two_names_is_refused(room: Room, tmp_path: Path, end: str) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    policies = ["--policy", "openai/m", "--policy", room.model() + end]
    done = rlaif("generate", prompts, *policies, "--out", tmp_path / "run", expect=2, OPENAI_BASE_URL=room.url)
    assert "named twice" in one_message(room, done.stderr) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("prompts", ["Why? " * 1000, "x" * 5000 + ".jsonl"], ids=["text", "name"])
def test_a_text_where_a_file_should_be_named(room: Room, tmp_path: Path, prompts: str) -> None:
    assert "x.jsonl" in prompts or "no file" in refused(room, prompts, "--policy", room.model(), "--out", tmp_path / "run")
    rlaif("generate", prompts, "--policy", room.model(), "--out", tmp_path / "run", expect=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["p.jsonl", "--out", "run"], "--policy"),
        (["p.jsonl", "--policy", "fake/oracle"], "out"),
        (["--out", "run", "--policy", "fake/oracle"], "prompts"),
    ],
)
def test_missing_option_is_named(room: Room, arguments: list[str], word: str) -> None:
    assert word in refused(room, *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature: 1.0\n", ["temprature", "temperature"]),
        ("n: many\n", ["n = 'many'"]),
    ],
)
def test_bad_configuration_file_is_named(room: Room, tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    said = refused(room, prompts, "--policy", room.model(), "--out", tmp_path / "run", "--config", path)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("source", "function", "words"),
    [
        ("def best(prompt, candidates):\n    return []\n", "worst", ["worst", "best"]),
        ("import no_such_module\n", "best", ["no_such_module"]),
        ("raise RuntimeError('a broken file')\n", "best", ["a broken file"]),
        ("def best(:\n", "best", ["SyntaxError"]),
        ("best = 3\n", "best", ["'best'"]),
        ("raise SystemExit(0)\n", "best", ["SystemExit"]),
    ],
)
def test_bad_judge_file_is_named(room: Room, tmp_path: Path, source: str, function: str, words: list[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    said = refused(room, prompts, "--policy", room.model(), "--out", tmp_path / "run", "--judge", f"{path}:{function}")
    assert "mine.py" in said and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("kind: telepathic\n", "kind"),
        ("kind: pairwise\nlogprob: true\n", "logprob"),
        ("{", "YAML"),
        ("kind: pairwise\ntext_template: gone\n", "gone"),
    ],
)
def test_bad_judge_spec_is_named(room: Room, tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    said = refused(room, prompts, "--policy", room.model(), "--out", tmp_path / "run", "--judge", path)
    assert word in said


@pytest.mark.parametrize("text", ["principles: []\n", "{"])
def test_bad_constitution_is_named(room: Room, tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    assert "mine.yaml" in refused(room, prompts, "--policy", room.model(), "--out", tmp_path / "run", "--constitution", path)


def test_missing_extra_names_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code = (
        "import sys; sys.modules['xllamacpp'] = None\n"  # as if it were not installed
        "sys.argv = ['rlaif', *sys.argv[1:]]; from rlaif.cli import main; main()"
    )
    options = [write_prompts(tmp_path / "p.jsonl", 1), "--policy", "gguf/m.gguf", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(RLAIF_CACHE=str(tmp_path / "cache")),
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'rlaif[gguf]'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# The run directory


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/nothing", "closed"])
def test_directory_that_cannot_be_written(room: Room, tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("x")
    out = Path(place) if place.startswith("/") else tmp_path / place
    if place == "closed":
        if os.geteuid() == 0:
            pytest.skip("root writes anywhere")
        out.mkdir(mode=0o500)
    said = refused(room, write_prompts(tmp_path / "p.jsonl", 1), "--policy", room.model(), "--out", out)
    assert repr(str(out)) in said and "cannot" in said
    assert (tmp_path / "a-file").read_text() == "x"


@pytest.mark.parametrize("kind", ["text", "other-database", "newer"])
def test_database_of_something_else_is_left_alone(room: Room, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    path = out / "run.sqlite"
    if kind == "text":
        path.write_text("My notes, " * 100)
    elif kind == "other-database":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE mine (x)")
        db.commit()
        db.close()
    else:
        rlaif("generate", write_prompts(tmp_path / "one.jsonl", 1), "--policy", "fake/oracle", "--out", out, "-n", 2)
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    before = path.read_bytes()
    said = refused(room, write_prompts(tmp_path / "p.jsonl", 1), "--policy", room.model(), "--out", out)
    assert "run.sqlite" in said
    assert kind != "newer" or ("newer" in said and "99" in said)
    assert path.read_bytes() == before
    assert "run.sqlite" in rlaif("export", out, expect=2).stderr


def test_second_process_on_one_directory_is_refused_with_the_first_ones_pid(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=60)
    command = ["generate", write_prompts(tmp_path / "p.jsonl", 2), "--policy", room.model(), "--out", tmp_path / "run"]
    with start(*command) as first:
        while not room.count():
            time.sleep(0.005)
        said = rlaif(*command, expect=2).stderr
        assert f"pid {first.pid}" in said
        first.kill()
    asked = room.count()
    room.set()
    rlaif(*command)
    assert room.count() > asked


def test_export_of_what_is_no_run(tmp_path: Path) -> None:
    assert "no run.sqlite" in rlaif("export", tmp_path, expect=2).stderr
    rlaif("generate", write_prompts(tmp_path / "p.jsonl", 1), "--policy", "fake/oracle", "--out", tmp_path / "run", "-n", 2)
    assert "'xml'" in rlaif("export", tmp_path / "run", "--format", "xml", expect=2).stderr
    assert "cannot write" in rlaif("export", tmp_path / "run", "--out", tmp_path / "no" / "x.jsonl", expect=2).stderr


def test_judge_that_raises_abstains(room: Room, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def moody(prompt, candidates):\n    return [1.0, 2.0 / ('1' not in prompt.text)]\n")
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    rlaif("generate", prompts, "--policy", room.model(), "--out", out, "-n", 2, "--judge", f"{path}:moody")
    said = json.loads((out / "summary.json").read_text())
    assert (said["pairs"], said["dropped"]) == (2, {"no_verdict": 1})
