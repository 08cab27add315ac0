"""Model names and what they mean.

openai/NAME[@URL]   any OpenAI-compatible endpoint
hf/ID_OR_DIR        transformers in this process
gguf/FILE           llama.cpp in this process
smollm2             the small real model, offline on a CPU
fake/NAME           a scripted model
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.aio import all_of
from rlaif.endpoint import MAX_WAIT_S, Endpoint
from rlaif.errors import InputError, StopRun
from rlaif.models import convert, fake, gguf, hf, openai, smollm2
from rlaif.types import Model

if TYPE_CHECKING:
    from rlaif.live import EndpointState


class Models:
    """Opens models by name, each once; models behind one address share its limits."""

    def __init__(
        self,
        *,
        concurrency: int,
        timeout_s: float,
        transport: str = "aiohttp",
        extra_body: Mapping[str, Any] | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        max_wait_s: float = MAX_WAIT_S,
        strict_model: bool = False,
    ) -> None:
        self._concurrency, self._timeout_s, self._transport = concurrency, timeout_s, transport
        self._limits: dict[str, Any] = {"concurrency": concurrency, "rpm": rpm, "tpm": tpm, "max_wait_s": max_wait_s}
        self._extra_body, self._strict = dict(extra_body or {}), strict_model
        self._models: dict[str, Model] = {}
        self._endpoints: dict[str, Endpoint | hf.Hf] = {}

    def open(self, name: str) -> Model:
        """The model that `name` means. Raises InputError; sends nothing yet."""
        if name not in self._models:
            self._models[name] = self._make(name)
        return self._models[name]

    def stop(self, reason: StopRun) -> None:
        """Lets no further call out; what is in flight goes on to its end."""
        for model in self._models.values():
            model.stop(reason)

    def stopped(self) -> StopRun | None:
        """Why an endpoint lets nothing out any more, None if all do."""
        return next((endpoint.stopped for endpoint in self._endpoints.values() if endpoint.stopped), None)

    def states(self) -> list[EndpointState]:
        """What each endpoint does now (`Endpoint.state`)."""
        return [endpoint.state() for endpoint in self._endpoints.values()]

    def oddities(self) -> dict[str, int]:
        """What was odd about answers that were taken (`odd`), of all models."""
        found = sum(
            (model.oddities.counts for model in self._models.values() if isinstance(model, openai.OpenAI)), Counter[str]()
        )
        return dict(sorted(found.items()))

    async def close(self) -> None:
        """Closes every model that was opened."""
        models = list(self._models.values())
        self._models.clear()
        await all_of(*(model.close() for model in models))

    def _make(self, name: str) -> Model:
        kind, _, rest = name.partition("/")
        if kind == "openai" and rest:
            return self._openai(rest)
        if kind == "gguf" and rest:
            return self._gguf(name, Path(rest).expanduser())
        if name == "smollm2":
            return self._gguf(name, smollm2.path())
        if kind == "fake" and rest:
            return fake.make(rest)
        if kind == "hf" and rest:
            return self._hf(name, rest)
        raise InputError(f"{name!r} is no model; use openai/NAME[@URL], hf/ID_OR_DIR, gguf/FILE, smollm2 or fake/oracle")

    def _openai(self, rest: str) -> Model:
        name, url = openai.split_url(rest)
        key = openai.api_key_for(name, url)
        endpoint = self._endpoints.get(url)
        if not isinstance(endpoint, Endpoint):
            endpoint = self._endpoints[url] = Endpoint(url, **self._limits)
        transport = openai.make_transport(self._transport, url, api_key=key, timeout_s=self._timeout_s)
        identity = {"openai": name, "url": url, "extra": self._extra_body}
        return openai.OpenAI(
            f"openai/{name}",
            identity=identity,
            endpoint=endpoint,
            transport=transport,
            served_as=name,
            extra_body=self._extra_body,
            strict=self._strict,
        )

    def _hf(self, name: str, rest: str) -> Model:
        where = str(convert.get()) if rest == "smollm2" else rest
        digests = smollm2.cache_dir() / "digests.json"
        model = hf.make(where, cache=digests, concurrency=self._concurrency, extra_body=self._extra_body)
        model.name = name if rest == "smollm2" else model.name
        self._endpoints[name] = model
        return model

    def _gguf(self, name: str, path: Path) -> Model:
        gguf.llama_cpp()
        weights = gguf.weights_digest(path, smollm2.cache_dir() / "digests.json")
        shown = name if name == "smollm2" else f"gguf/{path.stem}"
        model = gguf.Gguf(
            shown,
            path,
            weights=weights,
            concurrency=self._concurrency,
            timeout_s=self._timeout_s,
            extra_body=self._extra_body,
        )
        self._endpoints[name] = model.endpoint
        return model
