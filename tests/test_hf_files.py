"""The files of transformers models: which are known as the same, which are damaged, and what only loading finds.

Nothing is faked. Skipped where transformers is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from helpers import environment
from tiny import ask, make, user

from rlaif.errors import InputError, StopRun
from rlaif.models import catalog, hf
from rlaif.models.hf import files
from rlaif.types import Request

torch = pytest.importorskip("torch", reason="torch is missing: pip install 'rlaif[local]'")
transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install 'rlaif[local]'")

from rlaif.models.hf import network  # noqa: E402 - they need torch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_is_known_by_what_is_in_it(llama: Path, tmp_path: Path):
    cache = tmp_path / "digests.json"
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    (copy / "README.md").write_text("other words")
    assert files.digest_of(llama, cache) == files.digest_of(copy, cache) == files.digest_of(copy, tmp_path / "none" / "d.json")
    config = copy / "generation_config.json"
    config.write_text(config.read_text().replace("257", "256"))
    assert files.digest_of(llama, cache) != files.digest_of(copy, cache)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    named = [make(llama, tmp_path, **extra).identity for extra in ({}, {"top_p": 0.9}, {"chat_template": str(template)})]
    assert len({json.dumps(identity, sort_keys=True) for identity in named}) == 3
    (before,) = ask(make(llama, tmp_path, chat_template=str(template)), Request(user("12345"), max_tokens=1))
    assert before.prompt_tokens == 5


def damaged(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "header":
        weights.write_bytes(weights.read_bytes()[:8] + b"#" * (weights.stat().st_size - 8))
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "shard":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "base":
        (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("cut", "model.safetensors' has .* bytes and should have"),
        ("header", "model.safetensors'"),
        ("empty", "model.safetensors' is cut"),
        ("no weights", "there are no weights"),
        ("shard", "model-00001-of-00002.safetensors', which .* lists, is missing"),
        ("config", "'config.json' is no JSON"),
        ("no config", "'config.json' is missing"),
        ("no tokenizer", "there is no tokenizer"),
        ("base", """has no chat template.* --extra-body '{"chat_template": "FILE"}'"""),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_loaded(llama: Path, tmp_path: Path, how: str, names: str):
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    damaged(copy, how)
    with pytest.raises(InputError, match=names):
        make(copy, tmp_path)


@pytest.mark.parametrize("how", ["a weight is missing", "the tokenizer is broken"])
def test_what_only_loading_finds_stops_the_run_with_the_folder_named(llama: Path, tmp_path: Path, how: str):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    if how == "a weight is missing":
        weights = load_file(copy / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    else:
        (copy / "tokenizer.json").write_text('{"model": 1}')
    first, second = ask(make(copy, tmp_path), Request(user("Hi")), Request(user("Ho")))
    for found in (first, second):
        assert isinstance(found, StopRun) and found.kind == "model" and str(copy) in str(found)
    assert how != "a weight is missing" or "model.norm.weight" in str(first)


def test_names_that_mean_no_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, why in (
        ("./nowhere", "there is no folder"),
        ("a/b/c", "no folder"),
        ("own er/na me", "neither a folder nor an ID"),
    ):
        with pytest.raises(InputError, match=why):
            hf.make(name, cache=tmp_path / "d.json", concurrency=1, extra_body=None)
    with pytest.raises(InputError, match="a transformers model takes top_k"):
        hf.make(".", cache=tmp_path / "d.json", concurrency=1, extra_body={"frequency_penalty": 1})
    with pytest.raises(InputError, match="cannot be fetched"):
        catalog.get("hf/other")


OFFLINE = """
import socket, sys
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = refuse
import asyncio
from pathlib import Path
from rlaif.errors import InputError
from rlaif.models import Models
models = Models(concurrency=4, timeout_s=9)
model = models.open("hf/owner/tiny")
print(model.name, model.identity["hf"])
try:
    models.open("hf/owner/other")
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_hub_id_is_taken_from_the_local_cache_without_the_network(llama: Path, tmp_path: Path):
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(llama, snapshot)
    (tmp_path / "hub" / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--tiny" / "refs" / "main").write_text("0" * 40)
    env = environment(HF_HUB_CACHE=str(tmp_path / "hub"), RLAIF_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-W", "error", "-c", OFFLINE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    name, other = done.stdout.strip().split("\n")
    assert name == f"hf/owner/tiny {files.digest_of(llama, tmp_path / 'd.json')}"
    assert "'hf/owner/other' is neither a folder nor in the local hub cache, and cannot be fetched" in other


def test_without_the_extra_the_line_to_install_it_is_named(llama: Path, tmp_path: Path):
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in ('torch', 'transformers') else find(name, *more)\n"
        "from rlaif.models import Models, catalog\nfrom rlaif.errors import InputError\n"
        "try:\n    Models(concurrency=1, timeout_s=1).open(sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
        "print(dict(catalog.known())['hf/ID_OR_DIR'])"
    )
    command = [sys.executable, "-c", code, f"hf/{llama}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["transformers models need torch, transformers: pip install 'rlaif[local]'"] * 2


def test_precision_is_set_by_name(llama: Path, tmp_path: Path):
    one, two = (network.load(llama, dtype=kind) for kind in (None, "bfloat16"))
    assert (one.model.dtype, two.model.dtype) == (torch.float32, torch.bfloat16)
    assert two.token_bytes * 2 == one.token_bytes == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, size, bytes
    (reply,) = ask(make(llama, tmp_path, dtype="bfloat16"), Request(user("Hi"), max_tokens=4, temperature=0.0))
    assert reply.completion_tokens in range(1, 5)


def test_a_model_with_other_states_than_keys_and_values_is_refused(tmp_path: Path):
    config = transformers.MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, state_size=4, eos_token_id=257)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    tiny.save_tokenizer(tmp_path / "mamba")
    (found,) = ask(make(tmp_path / "mamba", tmp_path), Request(user("Hi")))
    assert isinstance(found, StopRun) and "openai/NAME@URL" in str(found)
