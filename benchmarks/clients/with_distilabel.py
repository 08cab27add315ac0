"""distilabel: four answers a prompt in one request, and one judgement by its UltraFeedback task.

    python with_distilabel.py URL PROMPTS OUT IN_FLIGHT

A step has one batch in flight, so that a batch is as large as the number of requests in flight; the cache is not used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration, UltraFeedback


def main() -> None:
    url, prompts, out, in_flight = sys.argv[1:]
    rows = [{"instruction": json.loads(line)["prompt"]} for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    size = int(in_flight)

    def model() -> OpenAILLM:
        return OpenAILLM(model="m", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 512})

    with Pipeline(name="benchmark", cache_dir=Path(out) / "cache") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=size)
        sample = TextGeneration(llm=model(), num_generations=4, group_generations=True, input_batch_size=size)
        judge = UltraFeedback(
            llm=model(), aspect="overall-rating", input_mappings={"generations": "generation"}, input_batch_size=size
        )
        load >> sample >> judge
    made = pipeline.run(use_cache=False)["default"]["train"]
    made.to_json(Path(out) / "rows.jsonl")
    print(json.dumps({"rows": len(made)}))


if __name__ == "__main__":
    main()
