"""A network with its tokenizer, loaded; and the one thing that it is asked: go on from these states with these tokens.

Sequences of different lengths are aligned at their ends. What of a sequence is held already is put into the cache, and
where the others have more to read, a part of it is read once more instead of padding: so the columns of a sequence have
no gap, and a sliding window over columns is one over tokens.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlaif.errors import StopRun
from rlaif.models.hf.prefixes import State, Tokens, tokens_of
from rlaif.models.hf.slots import Slots
from rlaif.models.hf.worker import first_line

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>")
_SHARE_OF_CPU, _SHARE_OF_GPU = 0.25, 0.6


@dataclass
class Network:
    """A causal language model. `model` is called as transformers' are; `room_tokens` states fit into memory beside it."""

    model: Any
    tokenizer: Any
    device: torch.device
    window: int | None
    stops: frozenset[int]
    room_tokens: int
    token_bytes: int
    layers: int
    takes: frozenset[str] = field(default_factory=frozenset)

    def forward(self, ids: torch.Tensor, starts: torch.Tensor, cache: Any) -> torch.Tensor:
        """The logits [rows, vocabulary] after `ids` [rows, tokens], which go behind what `cache` holds.

        `starts` [rows] are the columns where the rows begin; those before them are padding.
        """
        before = cache.get_seq_length()
        columns = torch.arange(before + ids.shape[1], device=self.device)
        more: dict[str, Any] = {}
        if "position_ids" in self.takes:
            more["position_ids"] = (columns[before:] - starts[:, None]).clamp_(min=0)
        if "logits_to_keep" in self.takes:
            more["logits_to_keep"] = 1
        mask = (columns >= starts[:, None]).long()
        said = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        return said.logits[:, -1].float()

    def extend(self, sequences: Sequence[Tokens], held: Sequence[tuple[State | None, int]]) -> tuple[torch.Tensor, Slots]:
        """(the logits after each sequence, their states). `held`: a state, and how many of the sequence's tokens it has."""
        lengths = [len(tokens) for tokens in sequences]
        width = max(length - known for length, (_, known) in zip(lengths, held, strict=True))
        columns = max(lengths)
        cache = Slots(self.layers)
        if columns > width:
            cache.fill(
                [
                    None
                    if state is None or length <= width
                    else [(k[:, : length - width], v[:, : length - width]) for k, v in state]
                    for length, (state, _) in zip(lengths, held, strict=True)
                ],
                columns - width,
                columns,
            )
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, tokens in enumerate(sequences):
            read = tokens[-width:]
            ids[row, width - len(read) :] = torch.as_tensor(read, dtype=torch.long)
        starts = torch.tensor([columns - length for length in lengths], device=self.device)
        return self.forward(ids.to(self.device), starts, cache), cache


def load(folder: Path, *, dtype: str | None) -> Network:
    """The chat model in `folder`, on the GPU if there is one. Raises StopRun if it, or a part of it, cannot be loaded."""
    model, tokenizer, device = load_parts(folder, transformers.AutoModelForCausalLM, dtype)
    layers = _layers(folder, DynamicCache(config=model.config).layers)
    takes = frozenset(inspect.signature(model.forward).parameters) & {"position_ids", "logits_to_keep"}
    window, stops = window_of(model.config), _stops(model, tokenizer)
    network = Network(model, tokenizer, device, window, stops, room_tokens=1, token_bytes=1, layers=layers, takes=takes)
    with torch.inference_mode():
        _, states = network.extend([tokens_of([0, 0])], [(None, 0)])
    network.token_bytes = max(1, states.bytes_per_token())
    network.room_tokens = max(1, int(free_bytes(device) / network.token_bytes))
    return network


def load_parts(folder: Path, auto: Any, dtype: str | None) -> tuple[Any, Any, torch.device]:
    """(the model that the auto class `auto` makes of `folder`, its tokenizer, where it is). Raises StopRun."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet_loading():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model, said = auto.from_pretrained(
                str(folder), dtype=dtype_for(device, dtype), local_files_only=True, output_loading_info=True
            )
        model = model.eval().to(device)
    except Exception as error:  # of transformers, tokenizers, safetensors and torch, which share no kind
        raise StopRun("model", f"transformers cannot load {str(folder)!r}: {first_line(error)}") from None
    missing = sorted(said["missing_keys"])
    if missing:  # transformers gives such ones random values
        raise StopRun("model", f"{str(folder)!r} has no weights for {', '.join(map(repr, missing[:3]))}: they would be random")
    return model, tokenizer, device


def dtype_for(device: torch.device, dtype: str | None) -> torch.dtype:
    """The precision that was asked for; else bfloat16 on a GPU and float32 on a CPU."""
    if dtype is not None:
        return getattr(torch, dtype)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def free_bytes(device: torch.device) -> int:
    """How much memory states may take: a share of what is free on a GPU, of all there is on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_GPU)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_CPU)


def window_of(config: Any) -> int | None:
    """The most tokens that the model reads, None where its configuration says nothing."""
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars: stderr is the run's own."""
    logging = transformers.utils.logging
    were = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were:
            logging.enable_progress_bar()


def out_of_memory(error: BaseException) -> bool:
    """True if the error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in said or "not enough memory" in said)


def release() -> None:
    """Gives memory that is free back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _layers(folder: Path, layers: Sequence[Any]) -> int:
    """How many layers hold keys and values. Raises StopRun for a model whose state is another (linear attention, Mamba)."""
    other = sorted({type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)})
    if other:
        raise StopRun(
            "model",
            f"{str(folder)!r} keeps other states than keys and values ({', '.join(other)}), which is not supported here:"
            " serve it, with vLLM for example, and use openai/NAME@URL",
        )
    return len(layers)


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the generation settings, the tokenizer's, and the usual ends of a turn."""
    said = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(said if isinstance(said, (list, tuple)) else [said])}
    added = tokenizer.get_added_vocab()
    return frozenset(int(i) for i in found | {added.get(name) for name in _TURN_ENDS} if i is not None)
