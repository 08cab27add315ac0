"""Datasets of the `datasets` library: saved in a folder, or on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.rows.lines import Row
from rlaif.rows.tables import Empty, without_nulls

_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")


def is_saved(path: Path) -> bool:
    """Whether the folder is what `save_to_disk` makes."""
    return any((path / mark).is_file() for mark in _MARKS)


def saved_rows(path: Path, empty: Empty) -> Iterator[Row]:
    """The rows of a saved dataset, or of a folder of one split of it."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is a folder, but not a saved dataset: {_first_line(error)}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise InputError(
                f"{str(path)!r} holds the splits {', '.join(loaded)}: name one, as {path / next(iter(loaded), '')}"
            )
        loaded = next(iter(loaded.values()))
    place = 0
    try:
        for place, row in enumerate(loaded, 1):
            yield f"{path}: row {place}", without_nulls(row, empty)
    except UnicodeDecodeError as error:
        at = error.object[error.start : error.start + 4]
        raise InputError(
            f"{path}: row {place + 1}: invalid UTF-8: {at!r}; save the dataset as .parquet, where --replace puts U+FFFD there"
        ) from None


def hub_name(name: str) -> tuple[str, str | None, str]:
    """(repository, configuration, split) of OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:CONFIGURATION:SPLIT."""
    repository, *parts = name.split(":")
    if len(parts) > 2:
        raise InputError(f"{name!r} names too much: a dataset on the hub is OWNER/NAME:CONFIGURATION:SPLIT")
    configuration = parts[0] if len(parts) == 2 else ""
    return repository, configuration or None, (parts[-1] if parts else "") or "train"


def hub_rows(name: str, empty: Empty) -> Iterator[Row]:
    """The rows of a dataset on the hub, as they come over the network."""
    import datasets

    repository, configuration, split = hub_name(name)
    try:
        loaded: Any = datasets.load_dataset(repository, configuration, split=split, streaming=True)
        for place, row in enumerate(loaded, 1):
            yield f"{name}: row {place}", without_nulls(row, empty)
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds
        said = " ".join(str(error).split()) if "Config name" in str(error) else _first_line(error)
        how = f"; name one as {repository}:CONFIGURATION:{split}" if "Config name" in said else ""
        raise InputError(f"no file at {name!r}, and it cannot be loaded as a hub dataset: {said}{how}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
