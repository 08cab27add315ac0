"""Exports as TRL reads them: each file is loaded with `datasets`, and its trainer takes a few steps on a tiny random model.

The chat template shows every key of every message, and all that it is given as tools: a null that a reader filled in, a lost
key or another order would be seen. What a trainer tokenised is compared with what the prompts and answers render to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny
from exports import PROMPTS

pytest.importorskip("trl", reason="trl is missing: pip install 'rlaif[dev]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # TRL still asks transformers 5 by the old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for key in m if key not in ('role', 'content') %}\n{{ key }}={{ m[key] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"
SUFFIXES = [".jsonl", ".parquet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.judged(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompts are one user message each."""
    return exports.judged(tmp_path_factory.mktemp("single"), ["plain", "unicode"])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny.save_chat(tmp_path_factory.mktemp("policy"), max_position_embeddings=4096)
    tiny.save_tokenizer(folder, template=TEMPLATE, pad="<pad>")
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a head for one reward."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(13)
    sizes: dict[str, Any] = tiny.SIZES | {"intermediate_size": 96, "max_position_embeddings": 4096}
    config = transformers.LlamaConfig(**sizes, num_labels=1, pad_token_id=258)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny.save_tokenizer(folder, template=TEMPLATE, pad="<pad>")
    return str(folder)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Any]:
    """A run's export of a format, loaded."""

    def load(run: Path, form: str, suffix: str) -> Any:
        return exports.load(exports.write(run, form, tmp_path / f"{form}{suffix}"), tmp_path / "cache")

    return load


def settings(out: Path, **more: Any) -> dict[str, Any]:
    """Arguments that every trainer takes: steps over the whole file, and nothing written or sent."""
    return {
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "max_length": None,
    } | more


def tokenizer(folder: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def rendered(reader: Any, id: str, answer: str | None = None) -> str:
    """The prompt as the template writes it, up to the answer's beginning or with the answer."""
    messages, tools = PROMPTS[id][0], exports.tools_of(id)
    if answer is None:
        return str(reader.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))
    whole = [*messages, {"role": "assistant", "content": answer}]
    return str(reader.apply_chat_template(whole, tools=tools, tokenize=False))


def train(trainer: Any, gap: Callable[[], float]) -> None:
    """Trains: the loss is finite at each step, weights move, and `gap`, what training is to raise, has risen."""
    import torch

    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    first = gap()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    assert gap() > first + 1e-3


def log_p(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> float:
    """The log-probability of an answer."""
    import torch
    import transformers

    ids = torch.tensor([prompt_ids + answer_ids])
    plain = transformers.AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        scores = plain.eval()(input_ids=ids).logits[0, :-1].log_softmax(-1)
    chosen = scores.gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :]
    return float(chosen.sum())


def preferring(trainer: Any, made: Any) -> Callable[[], float]:
    """By how much the model prefers chosen to rejected, over all rows, in log-probability."""

    def gap() -> float:
        return sum(
            log_p(trainer.model, row["prompt_ids"], row["chosen_ids"])
            - log_p(trainer.model, row["prompt_ids"], row["rejected_ids"])
            for row in made
        )

    return gap


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dpo(run, policy, loaded, tmp_path, suffix):
    import trl

    rows = loaded(run, "dpo", suffix)
    args = trl.DPOConfig(**settings(tmp_path))
    trainer = trl.DPOTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer(policy))
    reader, made = trainer.processing_class, trainer.train_dataset
    assert [row["id"] for row in made] == list(PROMPTS)
    for row in made:
        short, long, _ = exports.answers(row["id"])
        assert reader.decode(row["prompt_ids"]) == rendered(reader, row["id"])
        assert reader.decode(row["chosen_ids"]) == f"{long}{END}\n"
        assert reader.decode(row["rejected_ids"]) == f"{short}{END}\n"

    train(trainer, preferring(trainer, made))


def test_dpo_with_the_words_and_the_template_of_a_real_model(run, loaded, tmp_path):
    """Its template shows no tools and puts a system message where there is none; only the end of the prompt is looked at."""
    import torch
    import transformers
    import trl

    from rlaif.models import convert, smollm2

    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    reader = tokenizer(str(convert.get()))
    torch.manual_seed(14)
    sizes: dict[str, Any] = tiny.SIZES | {"vocab_size": len(reader), "hidden_size": 16, "intermediate_size": 32}
    transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path / "model")
    rows, args = loaded(run, "dpo", ".jsonl.gz").select([0, 1, 2]), trl.DPOConfig(**settings(tmp_path))
    trainer = trl.DPOTrainer(str(tmp_path / "model"), args=args, train_dataset=rows, processing_class=reader)
    for row in trainer.train_dataset:
        short, long, _ = exports.answers(row["id"])
        last = PROMPTS[row["id"]][0][-1]
        shown = f"<|im_start|>{last['role']}\n{last['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert reader.decode(row["prompt_ids"]).endswith(shown)
        assert reader.decode(row["chosen_ids"]) == f"{long}<|im_end|>\n"
        assert reader.decode(row["rejected_ids"]) == f"{short}<|im_end|>\n"
    train(trainer, preferring(trainer, trainer.train_dataset))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dpo_text(single, policy, loaded, tmp_path, suffix):
    """No template is applied; the trainer ends answers itself."""
    import trl

    rows = loaded(single, "dpo-text", suffix)
    args = trl.DPOConfig(**settings(tmp_path))
    trainer = trl.DPOTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer(policy))
    reader, made = trainer.processing_class, trainer.train_dataset
    assert [row["id"] for row in made] == ["plain", "unicode"]
    for row in made:
        short, long, _ = exports.answers(row["id"])
        assert reader.decode(row["prompt_ids"]) == PROMPTS[row["id"]][0][0]["content"] + "\n"
        assert reader.decode(row["chosen_ids"]) == long + END
        assert reader.decode(row["rejected_ids"]) == short + END
    train(trainer, preferring(trainer, made))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", ["reward", "reward-implicit"])
def test_reward(run, classifier, loaded, tmp_path, form, suffix):
    import torch
    import trl

    rows = loaded(run, form, suffix)
    args = trl.RewardConfig(**settings(tmp_path))
    trainer = trl.RewardTrainer(classifier, args=args, train_dataset=rows, processing_class=tokenizer(classifier))
    reader, made = trainer.processing_class, trainer.train_dataset
    assert [row["id"] for row in made] == list(PROMPTS)
    for row in made:
        short, long, _ = exports.answers(row["id"])
        assert reader.decode(row["chosen_ids"]) == rendered(reader, row["id"], long)
        assert reader.decode(row["rejected_ids"]) == rendered(reader, row["id"], short)
    batch = trainer.data_collator([made[k] for k in range(len(made))])
    margins = [math.log(row["p_chosen"] / (1 - row["p_chosen"])) for row in made]
    assert batch["margin"].tolist() == pytest.approx(margins, abs=1e-4) and min(margins) > 0

    def reward(ids: list[int]) -> float:
        return float(trainer.model(input_ids=torch.tensor([ids])).logits.detach())

    train(trainer, lambda: sum(reward(row["chosen_ids"]) - reward(row["rejected_ids"]) for row in made))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kto(run, policy, loaded, tmp_path, suffix):
    import trl

    rows = loaded(run, "kto", suffix)
    args = trl.KTOConfig(**settings(tmp_path, per_device_train_batch_size=len(rows)))
    trainer = trl.KTOTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer(policy))
    reader, made = trainer.processing_class, trainer.train_dataset
    assert [(row["id"], row["label"]) for row in made] == [(id, label) for id in PROMPTS for label in (True, False)]
    for row in made:
        short, long, _ = exports.answers(row["id"])
        assert reader.decode(row["prompt_ids"]) == rendered(reader, row["id"])
        assert reader.decode(row["completion_ids"]) == (long if row["label"] else short) + f"{END}\n"

    def gap() -> float:
        return sum((1 if row["label"] else -1) * log_p(trainer.model, row["prompt_ids"], row["completion_ids"]) for row in made)

    train(trainer, gap)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", ["sft", "sft-messages"])
def test_sft(run, policy, loaded, tmp_path, form, suffix):
    import trl

    rows = loaded(run, form, suffix)
    args = trl.SFTConfig(**settings(tmp_path))
    trainer = trl.SFTTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer(policy))
    reader, made = trainer.processing_class, trainer.train_dataset
    assert len(made) == len(PROMPTS)
    counted = []
    for id, row in zip(PROMPTS, made, strict=True):
        _, long, _ = exports.answers(id)
        assert reader.decode(row["input_ids"]) == rendered(reader, id, long)
        counted.append([token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100])
        assert reader.decode(counted[-1]) == (f"{long}{END}\n" if form == "sft" else rendered(reader, id, long))

    def likely() -> float:
        whole = [row["input_ids"] for row in made]
        return sum(log_p(trainer.model, ids[: -len(kept)] or ids[:1], kept) for ids, kept in zip(whole, counted, strict=True))

    train(trainer, likely)
