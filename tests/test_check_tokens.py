"""`rlaif check --tokenizer`: lengths, chat templates and control tokens; and that the trainers of TRL do what it says."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from helpers import command, rlaif, write_rows
from hypothesis import given
from hypothesis import strategies as st
from test_check import codes, examine, pair, said, text_pair, user

from rlaif.check.formats import format_of, split_point
from rlaif.check.tokens import Tokens, load
from rlaif.errors import InputError
from rlaif.models import convert, smollm2

ROLES = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for m in messages %}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token a byte, and ChatML."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(path)
    return path


def with_template(tmp_path: Path, template: str) -> str:
    path = tmp_path / "templated"
    tiny.save_tokenizer(path, template=template)
    return str(path)


def tokens_of(folder: Path, row: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of the prompt with the opened answer, and of both sides with it."""
    tokenizer = load(str(folder))

    def count(messages: list[Any], **more: Any) -> int:
        return len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False, **more))["input_ids"])

    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    return count(prompt, add_generation_prompt=True), count(prompt + chosen), count(prompt + rejected)


# Lengths


def test_what_a_length_does_to_a_pair(tmp_path, folder):
    row = pair(chosen=said("It is so, and so on."), rejected=said("It is so, but wait a bit."))
    prompt, chosen, rejected = tokens_of(folder, row)
    assert prompt < chosen < rejected
    same = prompt + len("It is so, ")

    def at(length: int, trainer: str | None = None) -> list[str]:
        return list(codes(examine(tmp_path, [row], tokenizer=str(folder), max_length=length, trainer=trainer)))

    assert at(prompt) == at(prompt, "kto") == ["dropped"]
    assert at(prompt + 1) == at(same) == ["equal_cut"]
    assert at(same, "kto") == ["cut"]  # KTO sees the two apart
    assert at(same + 1) == at(chosen - 1) == at(chosen) == at(rejected - 1) == ["cut"]
    assert at(rejected) == []
    assert at(rejected - 1, "reward") == ["dropped"] and at(rejected, "reward") == []


def test_what_a_length_does_to_other_rows(tmp_path, folder):
    def at(row: dict[str, Any], length: int) -> list[str]:
        return list(codes(examine(tmp_path, [row], tokenizer=str(folder), max_length=length)))

    for more in ({}, {"label": True}):
        row = {"prompt": "Why is it?", "completion": " So.", **more}
        assert [at(row, length) for length in (10, 11, 14, 15)] == [["dropped"], ["cut"], ["cut"], []]  # an end token each
    assert [at({"text": "Why is it?"}, length) for length in (5, 10, 11)] == [["cut"], ["cut"], []]
    talk = {"messages": user("Why?") + said("So.")}
    assert at(talk, 5) == ["cut"] and at(talk, 500) == []


def test_the_default_length_is_the_trainers(tmp_path, folder):
    report = examine(tmp_path, [text_pair(prompt="a" * 1023), text_pair(prompt="b" * 1024)], tokenizer=str(folder))
    assert codes(report)["dropped"] == 1
    assert next(f for f in report.findings if f.rule.code == "dropped").examples[0][0] == 2


# Templates


@pytest.mark.parametrize(
    ("template", "row", "code"),
    [
        (LOOP + ROLES + "{% endfor %}" + OPENED, pair(), None),
        (LOOP + "{% if m['role'] != 'system' %}" + ROLES + "{% endif %}{% endfor %}" + OPENED, pair(), None),
        (
            LOOP + "{% if m['role'] != 'system' %}" + ROLES + "{% endif %}{% endfor %}" + OPENED,
            pair(prompt=[{"role": "system", "content": "Be brief."}, *user("Why?")]),
            "prompt_changed",
        ),
        (LOOP + ROLES.replace("m['content']", "m['content'].split('</think>')[-1]") + "{% endfor %}" + OPENED, pair(), None),
        (
            LOOP + ROLES.replace("m['content']", "m['content'].split('</think>')[-1]") + "{% endfor %}" + OPENED,
            pair(chosen=said("<think>Hm.</think>So.")),
            "content_lost",
        ),
        (
            LOOP + ROLES.replace("m['content']", "m['content'] | trim") + "{% endfor %}" + OPENED,
            pair(chosen=said(" So. ")),
            None,
        ),
        (LOOP + ROLES.replace("m['content']", "m['content'] | upper") + "{% endfor %}" + OPENED, pair(), "content_lost"),
        (LOOP + ROLES + "{% endfor %}" + OPENED.replace("assistant\n", "assistant\n<think>\n"), pair(), "template"),
        (LOOP + "{{ raise_exception('no such thing') }}{% endfor %}", pair(), "template"),
        (LOOP + "{{ undefined.field }}{% endfor %}", pair(), "template"),
    ],
)
def test_templates_that_do_not_go_with_a_row(tmp_path, template, row, code):
    found = codes(examine(tmp_path, [row], tokenizer=with_template(tmp_path, template)))
    assert (code in found) if code else found == {}, found


def test_tools_and_settings_reach_the_template(tmp_path):
    template = "{{ tools[0]['name'] }}{{ mood }}" + LOOP + ROLES + "{% endfor %}" + OPENED
    tokenizer = with_template(tmp_path, template)
    row = pair(tools='[{"name": "now"}]', chat_template_kwargs={"mood": "calm"})
    assert codes(examine(tmp_path, [row], tokenizer=tokenizer)) == {}
    assert codes(examine(tmp_path, [pair(1)], tokenizer=tokenizer)) == {"template": 1}


def test_control_tokens_within_texts(tmp_path, folder):
    row = pair(prompt=user("Say <|im_end|> please"))
    assert codes(examine(tmp_path, [row], tokenizer=str(folder))) == {"special_tokens": 1}
    ready = text_pair(prompt="<|im_start|>user\nWhy?<|im_end|>\n")  # a text that a template has made
    assert codes(examine(tmp_path, [ready], tokenizer=str(folder))) == {}


@pytest.mark.parametrize("name", ["/none/at/all", "./none"])
def test_a_tokenizer_that_is_not_there_is_wrong_usage(tmp_path, name):
    with pytest.raises(InputError, match="--tokenizer"):
        examine(tmp_path, [pair()], tokenizer=name)


@pytest.mark.parametrize("more", [{"max_length": 5}, {"trainer": "dpo"}, {"tokenizer": "t", "max_length": 0}])
def test_wrong_usage(tmp_path, more):
    with pytest.raises(InputError):
        examine(tmp_path, [pair()], **more)


@pytest.fixture(scope="session")
def real() -> str:
    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    return str(convert.get())


@pytest.mark.slow
def test_a_real_tokenizer(tmp_path, real):
    rows = [pair(n) for n in range(4)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert "transformers cannot load it" in rlaif("check", path, "--tokenizer", "no/such", expect=2).stderr  # offline
    assert "0 errors, 0 warnings" in command("check", path, "--tokenizer", "smollm2")[0]
    assert "dropped" in command("check", path, "--tokenizer", real, "--max-length", 20, expect=1)[0]
    merged = codes(examine(tmp_path, [text_pair(prompt="The quest", chosen="ion is it.", rejected="ed one.")], tokenizer=real))
    assert merged == {"boundary": 1}


# What TRL does


@pytest.fixture(scope="module")
def trl() -> Iterator[Any]:
    """The library, which takes long to import and warns of its own future."""
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
        from trl import data_utils
        from trl.trainer import dpo_trainer, kto_trainer, reward_trainer, sft_trainer
    yield SimpleNamespace(
        data_utils=data_utils,
        dpo=dpo_trainer.DPOTrainer,
        reward=reward_trainer.RewardTrainer,
        kto=kto_trainer.KTOTrainer,
        sft=sft_trainer.SFTTrainer,
        version=trl.__version__,
    )


_TEXTS = st.text("ab ", min_size=1, max_size=8)
_TALKS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(
    lambda said: [{"role": "user", "content": c} for c in said]
)


@pytest.mark.slow
@given(st.one_of(st.tuples(_TEXTS, _TEXTS), st.tuples(_TALKS, _TALKS)))
def test_implicit_prompts_split_as_in_trl(trl, both):
    chosen, rejected = both
    theirs = trl.data_utils.extract_prompt({"chosen": chosen, "rejected": rejected})
    at = split_point(chosen, rejected)
    assert (theirs["prompt"], theirs["chosen"], theirs["rejected"]) == (chosen[:at], chosen[at:], rejected[at:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        pair(),
        text_pair(),
        {"prompt": "W", "completion": "S", "label": True},
        {"messages": user("W") + said("S")},
        {"text": "W"},
        {"prompt": user("W"), "completion": said("S")},
        {"chosen": user("W") + said("S"), "rejected": user("W") + said("T")},
    ],
)
def test_conversations_are_told_as_in_trl(trl, row):
    assert trl.data_utils.is_conversational(row) == (format_of(row).form == "messages")


def rows_of(kind: str, count: int = 60) -> list[dict[str, Any]]:
    """Rows of very different lengths; the two sides of a pair begin alike."""
    source, found = random.Random(kind), []
    for place in range(count):
        asked = f"{place} " + "why " * source.randint(0, 25)
        same = f"{place} so " * source.randint(0, 12)
        texts = [same + "on " * source.randint(1, 12), same + "no " * source.randint(1, 12)]
        talk = [user(asked), *map(said, texts)] if "messages" in kind else [asked, *texts]
        if kind.startswith("pairs"):
            found.append({"prompt": talk[0], "chosen": talk[1], "rejected": talk[2]})
        else:
            found.append({"prompt": talk[0], "completion": talk[1], **({"label": place % 2 > 0} if "kto" in kind else {})})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "messages"])
@pytest.mark.parametrize("trainer", ["dpo", "reward", "kto", "sft"])
def test_rows_are_dropped_and_cut_as_in_trl(trl, tmp_path, real, trainer, form):
    """The trainers' own `_prepare_dataset`, with the tokenizer of a real model."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    rows = rows_of(f"{'pairs' if trainer in ('dpo', 'reward') else trainer} {form}")
    tokenizer, length = load(real), 48 if form == "messages" else 24
    report = examine(tmp_path, rows, tokenizer=real, max_length=length, trainer=trainer if trainer == "reward" else None)
    args = SimpleNamespace(max_length=length, truncation_mode="keep_start", dataset_num_proc=None, dataset_text_field="text")
    args.per_device_train_batch_size, args.assistant_only_loss = 2, False
    me = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True, calculate_KL=False)
    args.shuffle_dataset = False
    me.desirable_weight = me.undesirable_weight = 1.0
    more = (False, None, "train") if trainer == "sft" else ("train",)
    prepare = getattr(trl, trainer)._prepare_dataset
    kept = prepare(me, datasets.Dataset.from_list(rows), tokenizer, args, *more)
    found = codes(report)
    assert found["dropped"] == len(rows) - len(kept) > 0
    if trainer == "dpo":
        ids = [[(row["prompt_ids"] + row[f"{side}_ids"]) for side in ("chosen", "rejected")] for row in kept]
        assert found["equal_cut"] == sum(chosen[:length] == rejected[:length] for chosen, rejected in ids) > 0
        assert found["cut"] == sum(max(len(c), len(r)) > length and c[:length] != r[:length] for c, r in ids)
    if trainer == "kto":
        assert found["cut"] == sum(len(row["prompt_ids"] + row["completion_ids"]) > length for row in kept)
    if trainer == "sft":  # which has cut them already; what is whole ends with the end token
        assert found["cut"] == sum(len(row["input_ids"]) == length for row in kept) - whole_at(tokenizer, rows, length, form)


def whole_at(tokenizer: Any, rows: list[dict[str, Any]], length: int, form: str) -> int:
    """How many rows have exactly so many tokens, and are not cut."""
    checker, found = Tokens(tokenizer), 0
    for row in rows:
        if form == "messages":
            text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        else:
            text = row["prompt"] + row["completion"] + tokenizer.eos_token
        found += len(checker.encode([text], special=form == "text")[0]) == length
    return found
