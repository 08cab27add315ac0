"""The built wheel, installed on its own: what is shipped is what was tested."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import environment, read_rows, summary, write_rows

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def call(*command: object, cwd: Path, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=environment())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    done = call(*pip, cwd=out)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("rlaif-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment that holds the wheel and its dependencies."""
    out = tmp_path_factory.mktemp("installed")
    reached = call(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", out, "typer", cwd=out)
    if reached.returncode != 0:
        pytest.skip(f"pip reaches no package index: {reached.stderr.strip()[-200:]}")
    venv.create(out / "venv", with_pip=True)
    python = out / "venv" / "bin" / "python"
    pins = ["-c", ROOT / "constraints" / "cpu.txt"]
    done = call(python, "-m", "pip", "install", "--quiet", *pins, wheel, cwd=out, timeout=280)
    assert done.returncode == 0, done.stderr
    return python.parent


def test_the_wheel_ships_texts_judges_types_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [p for folder in ("prompts", "judges") for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert shipped
    assert {f"rlaif/_data/{p.relative_to(ROOT)}" for p in shipped} <= names
    assert "rlaif/py.typed" in names and any(name.endswith("/LICENSE") for name in names)
    modules = {f"rlaif/{p.relative_to(ROOT / 'rlaif')}" for p in (ROOT / "rlaif").rglob("*.py") if "_data" not in p.parts}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "outputs/")) or name.endswith(".pyc")]


@pytest.mark.timeout(400)
def test_the_installed_command_runs_from_anywhere(installed, tmp_path):
    version = call(installed / "rlaif", "--version", cwd=tmp_path)
    assert version.stdout.startswith("rlaif ") and version.returncode == 0
    where = call(installed / "python", "-c", "import rlaif; print(rlaif.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where.stdout
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {k}?"} for k in range(3)])
    base = (installed / "rlaif", "generate", "prompts.jsonl", "--policy", "fake/oracle")
    for name, more in {"one": ["--constitution", "helpful"], "two": ["--judge", "judges/shortest.py:shortest"]}.items():
        done = call(*base, "--out", name, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(read_rows(tmp_path / name / "dpo.jsonl")) == summary(tmp_path / name)["pairs"] > 0
    demo = call(
        installed / "rlaif", "generate", "demo", "--policy", "fake/oracle", "--out", "first", "--limit", "2", cwd=tmp_path
    )
    assert demo.returncode == 0, demo.stderr
