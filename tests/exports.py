"""A judged run with every kind of prompt that exports have to carry, and its files as `datasets` loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlaif
from rlaif import results
from rlaif.export import files
from rlaif.export.formats import FORMATS

ODD = 'line\u2028separator, lone \r return, \r\n both, \x00 zero, \x85, tab\t, "quotes" \\ é ﬁ 👩‍👩‍👧'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city: 天气",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"default": 1.0}}}},
    },
]
CALL = {"function": {"arguments": {"city": "京都"}, "name": "weather"}, "id": "call1", "type": "function"}
PROMPTS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "plain": ([{"role": "user", "content": "Name a colour."}], None),
    "unicode": ([{"role": "user", "content": f"用中文说一句话 🙂 {ODD}"}], None),
    "turns": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "And now?", "name": "ann"},
        ],
        None,
    ),
    "tools": (
        [
            {"role": "user", "content": "How is the weather?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"sky": "clear"}', "name": "weather", "tool_call_id": "call1"},
        ],
        TOOLS,
    ),
    "tools-text": ([{"role": "user", "content": "What time is it?"}], TOOLS[1:]),
}
"""The messages and the tools of each prompt; the tools of "tools-text" are given as JSON text."""


def tools_of(id: str) -> list[dict[str, Any]] | None:
    """The tools as they come out: a list with its keys sorted, as the ledger keeps them, a text as it was."""
    tools = PROMPTS[id][1]
    return json.loads(json.dumps(tools, sort_keys=True)) if tools and id == "tools" else tools


def answers(id: str) -> list[str]:
    """Three answers to a prompt, the best (that is the longest) in the middle."""
    return [f"Short, {id}.", f"Long enough to be the best one {id} 好 {ODD}", f"Of middling length {id}."]


def inputs(ids: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of these prompts with their candidates, of all of them if none are named."""
    rows = []
    for id in ids or PROMPTS:
        messages, tools = PROMPTS[id]
        rows.append({"id": id, "prompt": messages, "candidates": answers(id)} | ({"tools": tools} if tools else {}))
        if id == "tools-text":
            rows[-1]["tools"] = json.dumps(tools)
    return rows


def judged(out: Path, ids: list[str] | None = None) -> Path:
    """The directory of a run over these prompts."""
    rlaif.judge(inputs(ids), judge="longest.py:longest", out=out).wait()
    return out


def rows_of(run: Path, form: str) -> list[Mapping[str, Any]]:
    return list(results.rows(run, form))


def write(run: Path, form: str, path: Path) -> Path:
    files.write(path, results.rows(run, form), FORMATS[form])
    return path


def load(path: Path, cache: Path) -> Any:
    """The file as trainers' scripts load it."""
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache))
