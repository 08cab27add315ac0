"""`hf/ID_OR_DIR`: a chat model with transformers, in this process.

All that waits is worked on together: prompts are read in batches, a prefix that several share once, and answers grow a token
a step side by side (`running`). One thread owns the network and the event loop never waits for it (`worker`). A model is
known by a digest of its files. What a request does not name is plain sampling at its temperature: the top_k, top_p and
penalties of the model's own generation settings are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.errors import InputError, StopRun
from rlaif.models import chat
from rlaif.models.hf import files
from rlaif.models.hf.settings import Settings, settings_of
from rlaif.models.hf.worker import Engine, Worker
from rlaif.types import Purchase, Reply, Request

if TYPE_CHECKING:
    from rlaif.live import EndpointState

WINDOW = 64
MAX_N = 64


class Hf:
    """A transformers chat model; it is loaded with the first call.

    The seed of a request and the place of a choice decide its random numbers, whatever else is in the batch: equal calls
    give equal answers but for rounding, which differs with the batch and may turn a token that was about to be drawn.
    Log-probabilities are listed for the first token.
    """

    max_n = MAX_N
    free = True

    def __init__(self, name: str, folder: Path, *, digest: str, settings: Settings, concurrency: int = WINDOW) -> None:
        said = settings.model_dump(exclude_defaults=True)
        self.name = name
        self.identity: Mapping[str, Any] = {"hf": digest, "extra": said}
        self.window = min(concurrency, WINDOW)
        self.specials: Sequence[str] = files.specials(folder)
        self._folder, self._settings = folder, settings
        self._worker = Worker(f"hf-{folder.name}", self._load)

    async def send(self, request: Request, purchase: Purchase) -> Reply:
        """One kept response. Raises CallFailed or StopRun."""
        if self._worker.stopped is not None:
            raise self._worker.stopped
        purchase.begin()
        answered = await self._worker.run(request)
        body = chat.write(
            self.name,
            answered.choices,
            prompt_tokens=answered.prompt_tokens,
            completion_tokens=answered.completion_tokens,
        )
        await purchase.keep(body)
        return self.read(body)

    def read(self, body: bytes) -> Reply:
        """The parsed response."""
        return chat.read(body)

    async def can_constrain(self) -> bool:
        """True."""
        return True

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin; those that wait for their turn raise `reason`."""
        self._worker.stop(reason)

    async def close(self) -> None:
        """Ends the thread and frees the network."""
        await self._worker.close()

    @property
    def stopped(self) -> StopRun | None:
        """Why it lets nothing out any more."""
        return self._worker.stopped

    def state(self) -> EndpointState:
        """What it does now, for a person."""
        return self._worker.state(self.name, self.window)

    def _load(self) -> Engine:
        from rlaif.models.hf import network, pick, running
        from rlaif.models.hf.chat_text import encode

        settings = self._settings
        loaded = network.load(self._folder, dtype=settings.dtype)
        filters = pick.Filters(settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty)

        def tokenise(request: Request) -> list[int]:
            return encode(
                loaded.tokenizer,
                request.messages,
                template=settings.chat_template,
                generation_prompt=True,
                variables=settings.chat_template_kwargs,
            )

        return running.Chat(loaded, tokenise, filters=filters)


def make(rest: str, *, cache: Path, concurrency: int, extra_body: Mapping[str, Any] | None) -> Hf:
    """The model `hf/REST`, whose files are known to be whole. Raises InputError; loads nothing yet."""
    settings = settings_of(extra_body)
    files.need_local()
    folder = files.folder_of(rest)
    files.check(folder)
    if settings.chat_template is None and not files.has_chat_template(folder):
        raise InputError(
            f"'hf/{rest}' has no chat template, as a base model has none: give one,"
            """ --extra-body '{"chat_template": "FILE"}', or use a chat model"""
        )
    name = f"hf/{rest if not Path(rest).expanduser().is_dir() else folder.resolve().name}"
    return Hf(name, folder, digest=files.digest_of(folder, cache), settings=settings, concurrency=concurrency)
