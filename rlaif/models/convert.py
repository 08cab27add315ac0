"""`hf/smollm2`: the small real model's GGUF file, turned once into a folder that transformers loads.

transformers reads GGUF files itself, but dequantises them anew at each start (about 20 s) and wants another package for it.
The folder lies in the cache and is named by the weights that it was made from. It is made under a name of its own and
renamed when it is whole, so that its existence means that it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, StopRun
from rlaif.models import smollm2
from rlaif.models.hf.files import need_local

log = logging.getLogger("rlaif")

FOLDER = f"SmolLM2-135M-Instruct-{smollm2.SHA256[:12]}"


def find() -> Path | None:
    """The converted folder, if it is here."""
    found = smollm2.cache_dir() / "models" / FOLDER
    return found if (found / "config.json").is_file() else None


def get() -> Path:
    """The converted folder; made now from the GGUF file if it is not here. Raises InputError or StopRun."""
    present = find()
    if present is not None:
        return present
    need_local()
    source = smollm2.path()
    target = smollm2.cache_dir() / "models" / FOLDER
    log.warning("the model smollm2 is converted for transformers, once: about 20 s")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_suffix(".lock")):
            if (made := find()) is not None:  # by another process meanwhile
                return made
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                part = Path(folder) / FOLDER
                convert(source, part)
                shutil.rmtree(target, ignore_errors=True)
                part.rename(target)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {str(target)!r}: {reason}; RLAIF_CACHE names another folder") from None
    return target


def convert(source: Path, target: Path) -> None:
    """Writes the GGUF model `source` as a transformers folder in half precision. Raises StopRun or InputError."""
    try:
        import gguf  # noqa: F401 - transformers reads the file with it
    except ModuleNotFoundError:
        raise InputError("converting a GGUF file needs the package gguf: pip install 'rlaif[local]'") from None
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from rlaif.models.hf.network import quiet_loading

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    with quiet_loading():
        config = transformers.AutoConfig.from_pretrained(**where)
        with torch.device("meta"):  # nothing is there yet but names and shapes
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        weights = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model, torch_dtype=torch.float16)[
            "tensors"
        ]
        model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        missing = [name for name, weight in model.named_parameters() if weight.is_meta]
        if missing:
            raise StopRun("model", f"{str(source)!r} lacks weights: {', '.join(missing[:3])}")
        model.save_pretrained(target)
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(target)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits until no other process converts."""
    with lock.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
