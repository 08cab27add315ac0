"""What `--extra-body` may say to a transformers model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlaif.errors import InputError


class Settings(BaseModel):
    """How a model samples and is loaded, beside what a request says; as it stands, plain sampling at the temperature.

    `chat_template` is a Jinja file for a model without one, `chat_template_kwargs` goes to the template. `dtype` is the
    precision: on a CPU with bfloat16 instructions, bfloat16 is two to three times as fast as float32, and less exact.
    """

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


def settings_of(extra_body: Mapping[str, Any] | None) -> Settings:
    """The settings, with the text of the chat template in place of its file. Raises InputError."""
    try:
        settings = Settings.model_validate(dict(extra_body or {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Settings.model_fields)
        raise InputError(f"--extra-body: {place}: {first['msg']}; a transformers model takes {known}") from None
    if settings.chat_template is None:
        return settings
    return settings.model_copy(update={"chat_template": read_template(settings.chat_template)})


def read_template(file: str) -> str:
    """The chat template in a file. Raises InputError."""
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the chat_template {file!r}: {error}") from None
