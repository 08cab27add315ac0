"""The README's commands and code run as they stand, in an empty folder.

Blocks marked `sh` and `python` are executed, `console` blocks are not (they install packages). Models at OpenAI are a real
server on loopback here: its address comes from the environment, as a user's would. `make demo` has a test of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import COMMAND, ROW_KEYS, Room, environment
from typer.testing import CliRunner

from rlaif.cli import app

pytestmark = pytest.mark.slow

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path, room: Room) -> str:
    path = f"{Path(COMMAND[0]).parent}:/usr/bin:/bin"
    env = environment(PATH=path, OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=room.url)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def test_commands(tmp_path: Path, room: Room) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if not line.startswith("make ")]
    assert sum(line.startswith("rlaif ") for line in lines) >= 6
    for line in lines:
        run(["bash", "-euc", line], tmp_path, room)
    outputs = {str(p.relative_to(tmp_path / "outputs")) for p in (tmp_path / "outputs").rglob("*.jsonl")}
    judged = {f"{there}/dpo.jsonl" for there in ("e/judges/pairwise", "e/judges/pointwise", "p/judge")}
    assert outputs == {"first/dpo.jsonl", "a/dpo.jsonl", "a/sft.jsonl", "b/sft.jsonl", "d/dpo.jsonl"} | judged
    assert (tmp_path / "outputs" / "a" / "report.html").exists() and (tmp_path / "outputs" / "e" / "report.html").exists()
    assert not (tmp_path / "outputs" / "c").exists()  # --dry-run


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("(")[0].split()[-1])
def test_code(code: str, tmp_path: Path, room: Room) -> None:
    (tmp_path / "example.py").write_text(code)
    assert run([sys.executable, "-W", "error", "example.py"], tmp_path, room).strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_from_top_to_bottom(page: Path, tmp_path: Path, room: Room) -> None:
    """Blocks that name a file are written to it; the others run, in one folder, in the order of the page."""
    text = page.read_text(encoding="utf-8")
    ran = 0
    for language, name, code in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if name:
            (tmp_path / name).write_text(code, encoding="utf-8")
        elif language == "sh":
            run(["bash", "-euc", code], tmp_path, room)
        elif language == "python":
            (tmp_path / "example.py").write_text(code, encoding="utf-8")
            assert run([sys.executable, "-W", "error", "example.py"], tmp_path, room).strip()
        ran += not name
    assert ran >= 3


def test_the_line_of_json_is_one_that_is_written() -> None:
    (row,) = (json.loads(block) for block in blocks("json"))
    assert list(row) == ROW_KEYS


def test_every_option_of_the_commands_is_real() -> None:
    names = [
        *("generate", "best-of-n", "judge", "export", "check", "status", "doctor", "report"),
        *("eval-judge", "probe sycophancy"),
    ]
    helps = "".join(CliRunner().invoke(app, [*name.split(), "--help"]).stdout for name in names)
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert option in helps, option


def test_files_that_are_linked_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
