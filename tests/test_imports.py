"""Imports run one way, and looking at the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlaif

PACKAGE = Path(rlaif.__file__).parent
LEVELS = [
    ["types", "errors"],
    [
        *("keys", "templates", "config", "rows", "data", "records", "degenerate", "ranking", "pairs"),
        *("selection", "accept", "audit", "export"),
        *("intervals", "tables", "labels", "bias", "trust", "calibration"),
        *("prices", "forecast", "worth", "pace"),
    ],
    ["aio", "engine", "rundir", "ledger", "responses", "endpoint", "calls", "sampling", "source", "live", "doctor"],
    ["models"],
    ["judges"],
    ["results", "against", "parts", "planner", "html", "dryrun", "jobs", "check", "evaluation"],
    [
        *("display", "voice", "progress", "single", "testing", "options"),
        *("report", "probe", "evaljudge", "cli", "__init__"),
    ],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HEAVY = {
    *("torch", "transformers", "datasets", "pandas", "pyarrow", "ray", "fastapi", "matplotlib", "statsmodels", "scipy.stats"),
    *("openai", "httpx", "aiohttp", "xllamacpp"),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def room(path: Path) -> str:
    """The module or folder directly under the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports at run time, at the top or inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "rlaif":
                inner = parts[1] if len(parts) > 1 else ""
                there = (PACKAGE / inner).is_dir() or (PACKAGE / f"{inner}.py").is_file()
                found.add(inner if inner and there else "__init__")
    return found - {room(path)}


def test_every_module_has_a_level():
    assert {room(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_what_stands_above_it(path):
    above = {name for name in imported(path) if LEVEL[name] > LEVEL[room(path)]}
    assert not above, f"{path.name} is on level {LEVEL[room(path)]} and imports {above}"


def test_no_two_rooms_import_each_other():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(room(path), set()).update(imported(path) - {"__init__"})
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"these import each other in a circle: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_the_engine_sees_protocols_only():
    assert not imported(PACKAGE / "engine.py") & {"models", "judges", "ledger", "endpoint", "calls", "sampling", "config"}


@pytest.mark.parametrize(
    "code",
    [
        "import rlaif",
        "import rlaif, contextlib\nfrom rlaif.cli import main\nsys.argv = ['rlaif', '--help']\n"
        "with contextlib.suppress(SystemExit): main()",
        "import rlaif\nrlaif.generate(['q'], policy='openai/m@http://127.0.0.1:9/v1', out='nowhere')",
        "import rlaif, tempfile\nwith tempfile.TemporaryDirectory() as out:\n"
        "    rlaif.generate(['q'], policy='fake/oracle', judge_model='fake/oracle', out=out, checks=False).wait()",
    ],
    ids=["import rlaif", "rlaif --help", "describing a run", "a run without a network"],
)
def test_looking_loads_nothing_heavy(code):
    report = f"\nprint(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    command = [sys.executable, "-W", "error", "-c", "import sys\n" + code + report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
