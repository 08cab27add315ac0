"""A model's files: where they are, whether they are whole, and a digest that knows them by content.

A folder is taken as it is. A hub ID means its snapshot in the local hub cache; only where there is none is the hub asked.
Nothing here loads torch or transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.models.digests import sha256_of

_NEEDED = ("torch", "transformers", "safetensors")
_KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
_UNREAD = ("trainer_state.json", "README.txt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_LARGEST_HEADER = 100 * 2**20


def need_local() -> None:
    """Raises InputError with what to install if transformers models cannot be used here."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"transformers models need {', '.join(missing)}: pip install 'rlaif[local]'")


def folder_of(name: str) -> Path:
    """The folder with the files of `name`, a folder or a hub ID. Raises InputError if it cannot be had."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"'hf/{name}': there is no folder {str(path)!r}")
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    """The hub's files of `name`: those in the local cache if they are whole, else downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    kinds = [f"*{kind}" for kind in _KINDS]
    try:
        found = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        if weights(found):
            return found
    except HFValidationError:
        raise InputError(f"'hf/{name}': neither a folder nor an ID of the hub (owner/name)") from None
    except (OSError, ValueError):  # not in the cache, or with a shard missing
        pass
    try:
        found = Path(huggingface_hub.snapshot_download(name, allow_patterns=kinds, ignore_patterns=["*/*"]))
        if not weights(found):  # older models have pickled weights alone
            found = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*kinds, "*.bin"], ignore_patterns=["*/*"]))
        return found
    except Exception as error:  # the hub's client raises errors of three libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"'hf/{name}' is neither a folder nor in the local hub cache, and cannot be fetched: {first}"
        ) from None


def weights(folder: Path) -> list[Path]:
    """The weight files, in order of their names. Raises ValueError naming a shard of the index that is missing."""
    index = next((p for p in sorted(folder.glob("*.index.json")) if p.name.startswith(("model.", "pytorch_model."))), None)
    if index is not None:
        shards = sorted(set(_json(index)["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{missing[0]!r}, which {index.name!r} lists, is missing")
        return [folder / name for name in shards]
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def check(folder: Path) -> None:
    """Raises InputError, naming the file, if the folder is not a whole model: a missing or cut file, a broken configuration."""
    try:
        if not isinstance(_json(folder / "config.json"), dict):
            raise ValueError("'config.json' is no JSON object")
        files = weights(folder)
        if not files:
            raise ValueError("there are no weights (model.safetensors)")
        for file in files:
            if file.suffix == ".safetensors":
                tensors(file)
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise ValueError("there is no tokenizer (tokenizer.json)")
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} is no transformers model: {Path(error.filename).name!r} is missing") from None
    except OSError as error:
        raise InputError(f"cannot read {str(error.filename)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(folder)!r} is no whole transformers model: {error}") from None


def tensors(file: Path) -> dict[str, Any]:
    """A safetensors file's tensors by name, with dtypes and shapes. Raises ValueError if it is cut or no such file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{file.name!r} is cut or no safetensors file")
        try:
            header: dict[str, Any] = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            ends = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ValueError(f"the header of {file.name!r} is damaged") from None
    if 8 + length + ends != size:
        raise ValueError(f"{file.name!r} has {size} bytes and should have {8 + length + ends}: fetch it again")
    return header


def config_of(folder: Path) -> dict[str, Any]:
    """The model's configuration, of a folder that was checked."""
    config: dict[str, Any] = _json(folder / "config.json")
    return config


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path.name!r} is no JSON") from None


def has_chat_template(folder: Path) -> bool:
    """True if the tokenizer brings a chat template."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    file = folder / "tokenizer_config.json"
    try:
        return file.is_file() and bool(_json(file).get("chat_template"))
    except (ValueError, AttributeError):
        raise InputError(f"{str(folder)!r} is no whole transformers model: 'tokenizer_config.json' is damaged") from None


def specials(folder: Path) -> tuple[str, ...]:
    """The texts that the tokenizer reads as more than text, as its files list them."""
    file = folder / "tokenizer.json"
    try:
        added = _json(file).get("added_tokens", []) if file.is_file() else []
        return tuple(token["content"] for token in added if token.get("special") and token["content"].strip())
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(f"{str(folder)!r} is no whole transformers model: 'tokenizer.json' is damaged") from None


def digest_of(folder: Path, cache: Path) -> str:
    """A digest of the folder's configuration, tokenizer and weights, the same wherever the folder is.

    The files' own digests are remembered in `cache` by path, size and modification time.
    """
    files = {p for p in folder.iterdir() if p.is_file() and p.suffix in _KINDS and p.name not in _UNREAD} | set(weights(folder))
    hasher = hashlib.sha256()
    try:
        for file, found in zip(sorted(files), sha256_of(sorted(files), cache), strict=True):
            hasher.update(f"{file.name} {found}\n".encode())
    except OSError as error:
        raise InputError(f"cannot read {str(error.filename)!r}: {error.strerror}") from None
    return hasher.hexdigest()
