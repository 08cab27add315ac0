"""Tiny transformers models in real folders: seeded weights, a tokenizer of bytes, a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<pad>")
SIZES: dict[str, Any] = {"vocab_size": 259, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE, pad: str | None = None) -> None:
    """A tokenizer with a token a byte."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIALS])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token=pad)
    made.chat_template = template
    made.save_pretrained(folder)


def save_chat(folder: Path, kind: str = "llama", **more: Any) -> Path:
    """A causal model of a kind: llama (grouped heads), mistral (a window of 24 tokens), gpt2 (learned positions)."""
    import torch
    import transformers

    grouped = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 512}
    made: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**grouped | more),
        "mistral": lambda: transformers.MistralConfig(**grouped | {"sliding_window": 24} | more),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=259, n_layer=2, n_embd=64, n_head=4, n_positions=512, bos_token_id=257, eos_token_id=257
        ),
    }
    torch.manual_seed(11)
    config = made[kind]()
    config.eos_token_id = 257
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # far enough apart that what is likely is not a matter of rounding
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_reward(folder: Path, *, labels: int = 1, pad: int | None = None, template: str | None = TEMPLATE) -> Path:
    """A classifier with a seeded head; `pad` is the configuration's padding token."""
    import torch
    import transformers

    torch.manual_seed(12)
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=96, num_key_value_heads=2, max_position_embeddings=256, num_labels=labels, pad_token_id=pad
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    save_tokenizer(folder, template=template)
    return folder
