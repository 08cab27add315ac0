"""What a person asks about models: which there are, how to get one, what an endpoint serves."""

from __future__ import annotations

import os
from pathlib import Path

from rlaif.errors import InputError
from rlaif.models import convert, fake, gguf, openai, smollm2
from rlaif.models.hf import files


def known() -> list[tuple[str, str]]:
    """(name, whether it can be used here) of each kind of model."""
    try:
        gguf.llama_cpp()
        llama = "ready"
    except InputError as error:
        llama = str(error)
    try:
        files.need_local()
        local = "ready"
    except InputError as error:
        local = str(error)
    weights = smollm2.find()
    here = f"ready: {weights}" if weights else "not here: rlaif models get smollm2"
    return [
        ("smollm2", here if llama == "ready" else llama),
        ("gguf/FILE", llama),
        ("hf/ID_OR_DIR", local),
        ("hf/smollm2", local if local != "ready" or weights else here),
        (
            "openai/NAME[@URL]",
            "OPENAI_API_KEY is set" if os.environ.get("OPENAI_API_KEY") else "local endpoints; elsewhere set OPENAI_API_KEY",
        ),
        *((f"fake/{name}", "ready") for name in fake.NAMES),
    ]


def get(name: str) -> Path:
    """Fetches and verifies the named small model; returns where it is. Raises InputError or StopRun."""
    if name not in ("smollm2", "hf/smollm2"):
        raise InputError(f"{name!r} cannot be fetched; only smollm2 can, and hf/smollm2 for transformers")
    weights = smollm2.get()
    return weights if name == "smollm2" else convert.get()


def served(url: str) -> list[str]:
    """The models that the endpoint at `url` lists. Raises InputError if it does not answer."""
    import httpx

    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url!r} is no address; it begins with http:// or https://")
    _, url = openai.split_url(f"any@{url}")
    key = openai.api_key_for("...", url)
    try:
        response = httpx.get(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=30)
        return [str(model["id"]) for model in response.raise_for_status().json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} lists no models: {type(error).__name__}: {error}") from None
