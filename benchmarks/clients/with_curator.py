"""Curator: four rows a prompt, one answer each, then one row a prompt with a judgement.

    python with_curator.py URL PROMPTS OUT IN_FLIGHT

An LLM of Curator answers a row with one response, so that four answers are four requests. The cache is off. The token
encoding that it would download is taken from the copy in litellm, which it depends on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

_litellm = importlib.util.find_spec("litellm")
if _litellm is not None and _litellm.origin is not None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(_litellm.origin).parent / "litellm_core_utils" / "tokenizers")
os.environ |= {"CURATOR_DISABLE_CACHE": "1", "CURATOR_DISABLE_RICH_DISPLAY": "1", "TELEMETRY_ENABLED": "false"}

from bespokelabs import curator  # noqa: E402
from datasets import Dataset  # noqa: E402

SAMPLES = 4


class Sampler(curator.LLM):
    """Answers a prompt."""

    def prompt(self, input: dict[str, Any]) -> str:
        return str(input["prompt"])

    def parse(self, input: dict[str, Any], response: str) -> list[dict[str, Any]]:
        return [{"prompt": input["prompt"], "place": input["place"], "answer": response}]


class Judge(curator.LLM):
    """Says which of a prompt's answers is best."""

    def prompt(self, input: dict[str, Any]) -> str:
        answers = "\n\n".join(f"[{place}]\n{answer}" for place, answer in enumerate(input["answers"]))
        return f"{input['prompt']}\n\n{answers}\n\nWhich of the last two answers is better, [[A]] or [[B]]?"

    def parse(self, input: dict[str, Any], response: str) -> list[dict[str, Any]]:
        return [{**input, "verdict": response}]


def main() -> None:
    url, prompts, out, in_flight = sys.argv[1:]
    os.environ["CURATOR_CACHE_DIR"] = str(Path(out) / "cache")
    texts = [json.loads(line)["prompt"] for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    backend = {
        "base_url": url,
        "api_key": "none",
        "max_concurrent_requests": int(in_flight),
        "max_requests_per_minute": 10_000_000,
        "max_tokens_per_minute": 10_000_000_000,
    }

    def ask(kind: type[curator.LLM], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made = kind(model_name="m", backend="openai", backend_params=backend)(Dataset.from_list(rows))
        return list(getattr(made, "dataset", made))

    answered = ask(Sampler, [{"prompt": text, "place": place} for text in texts for place in range(SAMPLES)])
    answers: dict[str, list[str]] = {text: [] for text in texts}
    for row in sorted(answered, key=lambda row: row["place"]):
        answers[row["prompt"]].append(row["answer"])
    judged = ask(Judge, [{"prompt": text, "answers": found} for text, found in answers.items()])
    (Path(out) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged), encoding="utf-8")
    print(json.dumps({"rows": len(judged)}))


if __name__ == "__main__":
    main()
