"""NVIDIA Data Designer: four columns of answers and one column that judges them, for a seed of prompts.

python with_data_designer.py URL PROMPTS OUT IN_FLIGHT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"NEMO_TELEMETRY_ENABLED": "false"}

import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner

SAMPLES = 4


def main() -> None:
    url, prompts, out, in_flight = sys.argv[1:]
    texts = [json.loads(line)["prompt"] for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    model = dd.ModelConfig(
        alias="m",
        model="m",
        provider="local",
        inference_parameters=dd.ChatCompletionInferenceParams(
            temperature=1.0, max_tokens=512, max_parallel_requests=int(in_flight)
        ),
        skip_health_check=True,
    )
    work = dd.DataDesignerConfigBuilder(model_configs=[model])
    work.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame({"question": texts})))
    for place in range(SAMPLES):
        work.add_column(dd.LLMTextColumnConfig(name=f"answer_{place}", model_alias="m", prompt="{{ question }}"))
    shown = "\n\n".join(f"{{{{ answer_{place} }}}}" for place in range(SAMPLES))
    ask = f"{{{{ question }}}}\n\n{shown}\n\nWhich of the last two answers is better, [[A]] or [[B]]?"
    work.add_column(dd.LLMTextColumnConfig(name="verdict", model_alias="m", prompt=ask))
    designer = DataDesigner(
        artifact_path=Path(out) / "artifacts",
        model_providers=[dd.ModelProvider(name="local", endpoint=url, provider_type="openai", api_key="none")],
    )
    made = designer.create(work, num_records=len(texts)).load_dataset()
    made.to_json(Path(out) / "rows.jsonl", orient="records", lines=True)
    print(json.dumps({"rows": len(made)}))


if __name__ == "__main__":
    main()
