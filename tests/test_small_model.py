"""The real small model: as policy and judge in this process, and behind xllamacpp's own OpenAI-compatible server.

Nothing is faked here. Skipped where llama.cpp or the weights are missing; `make test` brings both.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import Books

import rlaif
from rlaif.endpoint import Endpoint
from rlaif.errors import CallFailed, InputError
from rlaif.ledger import Ledger
from rlaif.models import Models, chat, gguf, openai, smollm2
from rlaif.types import Choice, Reply, Request

pytest.importorskip("xllamacpp", reason="llama.cpp is missing: pip install 'rlaif[gguf]'")
if smollm2.find() is None:
    pytest.skip("the weights are missing: rlaif models get smollm2", allow_module_level=True)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
HELLO = ({"role": "user", "content": "Name three fruits."},)


def ask(*requests: Request, extra_body: dict[str, object] | None = None) -> list[tuple[Choice, ...]]:
    async def run() -> list[tuple[Choice, ...]]:
        models = Models(concurrency=8, timeout_s=120, extra_body=extra_body)
        model = models.open("smollm2")
        try:
            replies = await asyncio.gather(*(model.send(request, Books()) for request in requests))
            return [reply.choices for reply in replies]
        finally:
            await models.close()

    return asyncio.run(run())


def test_samples_follow_the_seed_and_differ_among_each_other() -> None:
    request = Request(HELLO, n=3, temperature=1.0, max_tokens=24, seed=7)
    (first,), (again,) = ask(request), ask(request)
    assert [c.text for c in first] == [c.text for c in again]
    assert len({c.text for c in first}) == 3


def test_tokens_of_every_choice_are_counted() -> None:
    books = Books()

    async def run() -> Reply:
        models = Models(concurrency=8, timeout_s=120)
        try:
            return await models.open("smollm2").send(Request(HELLO, n=4, max_tokens=20, temperature=1.0, seed=1), books)
        finally:
            await models.close()

    counted = asyncio.run(run()).completion_tokens
    assert counted is not None and 60 <= counted <= 84  # four answers of about 20 tokens, not one
    assert [chat.read(body).completion_tokens for body in books.kept] == [counted]


def test_letters_have_probabilities_and_a_grammar_leaves_nothing_else() -> None:
    question = ({"role": "user", "content": "Which is a fruit? A: apple. B: brick. Reply with one letter only: A or B."},)
    free = Request(question, temperature=1.0, max_tokens=1, logprobs=20)
    bound = Request(question, temperature=1.0, max_tokens=1, logprobs=20, choices=("A", "B"))
    for (choice,) in ask(free, bound):
        assert choice.first_token is not None
        assert 0.0 < sum(choice.first_token.values()) <= 1.0 + 1e-6
    (choice,) = ask(bound)[0]
    assert choice.text in ("A", "B")


def test_a_prompt_beyond_the_context_is_a_typed_failure() -> None:
    with pytest.raises(CallFailed) as caught:
        ask(Request(({"role": "user", "content": "word " * 9000},), max_tokens=4))
    assert caught.value.kind == "too_long"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a GGUF file"):
        gguf.weights_digest(wrong, tmp_path / "digests.json")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["policy", "judge"])
def test_a_broken_model_stops_the_run_and_gives_the_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF" + b"\0" * 100)
    roles = {"policy": "fake/oracle", "judge_model": "fake/oracle"} | {{"judge": "judge_model"}.get(role, role): f"gguf/{torn}"}
    for _ in range(2):
        with pytest.raises(rlaif.StopRun, match="cannot load") as stop:
            rlaif.generate(["Hi", "Ho"], n=2, out=tmp_path / "run", **roles).wait()  # type: ignore[arg-type]
        assert stop.value.kind == "model"
    Ledger.open(tmp_path / "run").close()


def test_a_run_with_the_model_as_policy_and_judge(tmp_path: Path) -> None:
    prompts = ["Name a colour in one sentence.", "用一句话说一种水果。"]
    run = rlaif.generate(prompts, policy="smollm2", n=2, max_tokens=160, out=tmp_path / "run", allow_truncated=True)
    summary = run.wait()
    assert summary["prompts"] == 2 and summary["state"] == "done"
    assert summary["calls"] == {"policy": 2, "judge": 4, "reused": 0}
    assert summary["no_verdict_rate"] == 0.0 and summary["cost_usd"] == 0.0
    written = (tmp_path / "run" / "dpo.jsonl").read_bytes()
    again = rlaif.generate(prompts, policy="smollm2", n=2, max_tokens=160, out=tmp_path / "run", allow_truncated=True)
    assert again.wait()["calls"] == {"policy": 0, "judge": 0, "reused": 6}
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == written


def test_behind_its_own_http_server_it_is_an_endpoint_like_any(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            import sys, xllamacpp
            params = xllamacpp.CommonParams()
            params.model.path, params.n_parallel, params.n_ctx, params.verbosity = {str(smollm2.path())!r}, 4, 8192, -1
            server = xllamacpp.Server(params)
            print(server.listening_address, flush=True)
            sys.stdin.read()
        """)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        name = f"openai/smollm2@{server.stdout.readline().strip()}/v1"
        judge = tmp_path / "brief.yaml"
        judge.write_text("kind: pairwise\nmax_tokens: 48\n")
        run = rlaif.generate(
            ["Name a colour in one sentence."],
            policy=name,
            judge=str(judge),
            n=3,
            max_tokens=160,
            out=tmp_path / "run",
            allow_truncated=True,
        )
        (record,) = list(run)
        assert len(record.candidates) == 3 and all(c.text for c in record.candidates)
        readable = [v for v in record.verdicts if v.scores is not None]
        assert {v.scale for v in readable} <= {"probability", "vote"}
        assert all(v.error and v.error.startswith("unreadable") for v in record.verdicts if v.scores is None)
        by_text = sum(v.scale != "probability" for v in record.verdicts)  # too little mass on the letters: asked again
        assert run.summary is not None and run.summary["calls"] == {"policy": 1, "judge": 6 + by_text, "reused": 0}
        assert openai.is_local(name.partition("@")[2])
    finally:
        server.communicate("", timeout=30)


def test_closing_ends_the_server_and_leaves_no_port_open() -> None:
    async def run() -> str:
        model = gguf.Gguf("smollm2", smollm2.path(), weights="x", concurrency=2, timeout_s=60)
        await model.send(Request(HELLO, max_tokens=2), Books())
        loaded = await model._loading  # type: ignore[misc]
        address = str(loaded._server.listening_address)
        del loaded
        await model.close()
        return address

    address = asyncio.run(run())
    endpoint = Endpoint("closed", concurrency=1, attempts=1)
    transport = openai.AiohttpTransport(address + "/v1", api_key=None, timeout_s=5)

    async def probe() -> None:
        try:
            await endpoint.call(lambda: transport.post({"messages": []}), Books(), chat.read)
        finally:
            await transport.close()

    with pytest.raises(rlaif.StopRun, match="cannot connect"):
        asyncio.run(probe())


def test_make_demo_twice(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "bin" / "rlaif").exists():
        pytest.skip("not in a checkout that was set up with make")
    demo = ["make", "--no-print-directory", "demo", f"DEMO={tmp_path / 'demo'}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "OPENAI"))}
    first, second = (
        subprocess.run(demo, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert {"run.sqlite", "config.yaml", "dpo.jsonl", "summary.json"} <= {p.name for p in (tmp_path / "demo").iterdir()}
    for said in (first, second):
        assert "── chosen" in said and "flip rate" in said and "little better than noise" in said and "Next: rlaif" in said
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["calls"]["policy"] == summary["calls"]["judge"] == 0 < summary["calls"]["reused"]
    assert summary["wall_s"] < 30
    rows = [json.loads(line) for line in (tmp_path / "demo" / "dpo.jsonl").read_text().split("\n")[:-1]]
    assert len(rows) == summary["pairs"] >= 5
