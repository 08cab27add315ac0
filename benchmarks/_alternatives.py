"""Other tools, each in a virtual environment of its own: which, and how one is installed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from _work import Failed

_INSTALL_S = 900.0


@dataclass(frozen=True)
class Tool:
    """A package and the script in clients/ that works with it. The first of `versions` that can be installed is used.

    `needs` are packages that it imports and does not name.
    """

    name: str
    package: str
    versions: tuple[str, ...]
    client: str
    needs: tuple[str, ...] = ()

    def installed(self, directory: Path) -> tuple[Path, str]:
        """(the interpreter, the version) of its environment under `directory`, made if need be. Raises Failed."""
        home = directory.expanduser().resolve() / self.name
        python = home / "bin" / "python"
        if not python.exists():
            _call([sys.executable, "-m", "venv", home])
        if (version := self._version(python)) is not None:
            return python, version
        reason = ""
        for version in self.versions:
            try:
                _call([python, "-m", "pip", "install", "--quiet", f"{self.package}=={version}", *self.needs])
            except Failed as error:
                reason = reason or str(error)
            else:
                return python, version
        raise Failed(reason)

    def _version(self, python: Path) -> str | None:
        """The version that is installed, None if it is none of those wanted."""
        name = self.package.partition("[")[0]
        ask = f"import importlib.metadata as m; print(m.version({name!r}))"
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
        version = done.stdout.strip()
        return version if version in self.versions else None


def _call(command: list[object]) -> None:
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"it was not installed within {_INSTALL_S:.0f} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise Failed(said[-1][:300] if said else f"status {done.returncode}")


TOOLS = (
    Tool("distilabel", "distilabel[openai]", ("1.5.3",), "with_distilabel.py", ("requests",)),
    Tool("curator", "bespokelabs-curator", ("0.1.31",), "with_curator.py"),
    Tool("data-designer", "data-designer", ("0.9.7", "0.9.6"), "with_data_designer.py"),
)
