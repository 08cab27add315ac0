"""Measure the rules that tell degenerate answers: false alarms on real answers, hits on planted ones, and what they cost.

alarms   Real answers of many models with scores, and pairs with a human or objective label. alarms: answers that a rule marks.
         good: among answers that are best of their prompt (the highest score where scores differ, the preferred side of a
         pair): an alarm there is a false one, unless all answers of the prompt are bad. --examples KIND prints the answers.
planted  Real answers made degenerate: a phrase, a word, a character or a paragraph looped in the middle or to the end, tails,
         the prompt given back, a refusal of a prompt that gives no reason for one, a text in another language. hit: the share
         that is marked, by any rule; as: the kinds. Prompts that exempt a fault by what they ask for (a song, a translation, a
         subject that may be refused) are counted apart.
cost     Microseconds an answer, from a record's own texts, and for answers of 1 kB and of 1 MB.

The data is a folder with candidates/*.jsonl.gz and pairs/*.jsonl.gz (--data); nothing is written.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _server import ROOT, show, table
from _work import machine

from rlaif import degenerate
from rlaif.data import read_candidates
from rlaif.degenerate import echo, language, refusal
from rlaif.types import Candidate, Prompt

DATA = ROOT.parent / "shared" / "data"
KINDS = [kind for kind in degenerate.KINDS if kind != "truncated"]
Judged = tuple[Prompt, str, bool]
"""(prompt, answer, whether it is best of its prompt)"""

REFUSALS = (
    "I'm sorry, but I can't assist with that request.",
    "I apologize, but I am not able to help with that.",
    "As an AI language model, I cannot provide an answer to this question.",
    "Sorry, I can't do that.",
    "I cannot fulfill this request.",
    "I'm really sorry, but I won't be able to write that for you.",
    "Unfortunately, I am unable to complete this task.",
    "I must decline to answer this question.",
    "As a large language model, I don't have the ability to solve this.",
    "I'm afraid I can't help you with that.",
    "My apologies, but this is beyond my capabilities and I cannot respond.",
    "I am not able to provide a response to this.",
    "I’m sorry, I can’t comply with that.",
    "很抱歉，我无法回答这个问题。",
    "I won't answer that.",
    "Sorry, but I'm not comfortable providing that.",
)
FOREIGN = (
    "Das ist eine gute Frage, und die Antwort hängt davon ab, wie man sie versteht. Zuerst muss man wissen, was mit "
    "dem Wort gemeint ist, und dann kann man in aller Ruhe sagen, ob es für alle gilt oder nur für einige von uns.",
    "C'est une bonne question, et la réponse dépend de ce que vous voulez faire. Il faut d'abord choisir les "
    "ingrédients dans une boutique qui se trouve près de chez vous, puis les laver avec de l'eau froide et les "
    "couper en petits morceaux.",
    "Es una buena pregunta, y la respuesta depende de lo que se quiere hacer con el resultado. Primero hay que leer "
    "el texto con calma, y después se puede escribir un resumen en el que están todas las ideas, pero sin los "
    "detalles.",
    "Esta é uma boa pergunta, e a resposta depende do que você quer fazer com o resultado. Primeiro é preciso ler o "
    "texto com calma, e depois se pode escrever um resumo em que estão todas as ideias, mas não os detalhes.",
    "È una buona domanda, e la risposta dipende da quello che si vuole fare con il risultato. Prima di tutto è "
    "necessario leggere il testo con calma, e poi si può scrivere un riassunto in cui sono presenti tutte le idee, "
    "ma non i dettagli.",
    "Dat is een goede vraag, en het antwoord hangt af van wat je met het resultaat wilt doen. Eerst moet je de tekst "
    "rustig lezen en dan kun je een samenvatting schrijven waarin alle ideeën staan, maar niet de details van het "
    "verhaal.",
    "Это хороший вопрос, и ответ на него зависит от того, что вы хотите сделать с результатом. Сначала нужно "
    "спокойно прочитать текст, а потом можно написать краткое изложение, в котором есть все мысли, но нет "
    "подробностей.",
    "这是一个很好的问题，答案取决于你想用结果来做什么。首先要安静地读完整篇文章，然后可以写一份摘要，"
    "其中包含所有的想法，但不包含细节。",
    "これはとても良い質問で、答えは結果をどのように使いたいかによって変わります。まず文章を落ち着いて読み、"
    "それから要約を書くとよいでしょう。",
    "이것은 좋은 질문이며 답은 결과로 무엇을 하고 싶은지에 따라 달라집니다. 먼저 글을 차분히 읽고 나서 요약을 쓸 수 "
    "있습니다. 모든 생각을 담되 세부는 빼세요.",
    "هذا سؤال جيد، والجواب يعتمد على ما تريد أن تفعله بالنتيجة. يجب أولا أن تقرأ النص بهدوء، ثم يمكنك أن تكتب ملخصا "
    "فيه كل الأفكار ولكن بدون التفاصيل الكثيرة التي لا يحتاج إليها القارئ.",
    "यह एक अच्छा सवाल है, और जवाब इस पर निर्भर करता है कि आप नतीजे के साथ क्या करना चाहते हैं। पहले पाठ को शांति से "
    "पढ़ना चाहिए, और फिर आप एक सारांश लिख सकते हैं जिसमें सभी विचार हों।",
)


def _words(text: str, rng: random.Random, count: int) -> str:
    """So many neighbouring words of the text, with a letter among them."""
    words = text.split()
    starts = [k for k in range(max(1, len(words) - count)) if any(map(str.isalpha, "".join(words[k : k + count])))]
    start = rng.choice(starts or [0])
    return " ".join(words[start : start + count]) or "so"


def _looped(text: str, unit: str, rng: random.Random, *, end: bool) -> str:
    """The text with the unit in a row, over a third of it and 300 characters at least, in the middle or to the end."""
    row = unit * max(8, (max(len(text) // 2, 300)) // len(unit) + 1)
    cut = rng.randrange(len(text) // 4, 3 * len(text) // 4 + 1)
    return text[:cut] + " " + row + ("" if end else text[cut:])


_CHINESE = "我们需要考虑这个问题的答案，"
_LAST_WORDS = ("pls", "the", "please", "and", "very", "good")

Plant = Callable[[str, str, random.Random], str | None]
"""A degenerate answer from (the prompt's text, a real answer), or None where it cannot be made."""

PLANTS: dict[str, Plant] = {
    "loop: word": lambda p, t, r: _looped(t, _words(t, r, 1) + " ", r, end=r.random() < 0.5),
    "loop: phrase": lambda p, t, r: _looped(t, _words(t, r, r.randrange(2, 12)) + " ", r, end=r.random() < 0.5),
    "loop: sentence": lambda p, t, r: _looped(t, _words(t, r, r.randrange(12, 28)) + ". ", r, end=r.random() < 0.5),
    "loop: letter": lambda p, t, r: _looped(t, r.choice("aeomhz"), r, end=r.random() < 0.5),
    "loop: Chinese": lambda p, t, r: _looped(t, _CHINESE[: r.randrange(1, 15)], r, end=r.random() < 0.5),
    "loop: whole answer": lambda p, t, r: "\n\n".join([t] * 4) if len(t) > 200 else None,
    "tail: word": lambda p, t, r: t + f" {r.choice(_LAST_WORDS)}" * r.randrange(3, 30),
    "tail: marks": lambda p, t, r: t + r.choice(["?", "!", "？", "!?"]) * r.randrange(6, 40),
    "tail: phrase": lambda p, t, r: t + (" " + _words(t, r, r.randrange(2, 5))) * r.randrange(12, 20),
    "echo": lambda p, t, r: p if r.random() < 0.5 else p.rstrip("?.! ") + r.choice(["", "?", "!", ".", "\n\nAnswer:"]),
    "refusal": lambda p, t, r: r.choice(REFUSALS),
    "wrong language": lambda p, t, r: r.choice(FOREIGN),
}


def exempt(name: str, prompt: Prompt) -> bool:
    """Whether the prompt asks for what this fault looks like, or is too short or too strange to tell."""
    asked = str(prompt.messages[-1]["content"])
    if name.startswith(("loop", "tail")):
        return degenerate.asks_for_repetition(asked)
    if name == "echo":
        return len(asked) < echo.LEAST_CHARACTERS or echo.gives_text_back(asked)
    if name == "refusal":
        return refusal.gives_reason(prompt)
    return language.language_of(asked) is None or language.names_language(prompt)


def files(data: Path) -> Iterator[tuple[str, list[Judged]]]:
    """(name, its answers) of each file."""
    for path in sorted((data / "candidates").glob("*.jsonl.gz")):
        rows: list[Judged] = []
        for prompt, candidates in read_candidates(str(path)):
            scores = [c.score or 0.0 for c in candidates]
            rows += [(prompt, c.text, (c.score or 0.0) == max(scores) > min(scores)) for c in candidates]
        yield f"candidates/{path.name.removesuffix('.jsonl.gz')}", rows
    for path in sorted((data / "pairs").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            given = [json.loads(line) for line in file]
        yield (
            f"pairs/{path.name.removesuffix('.jsonl.gz')}",
            [
                (
                    Prompt(row["id"], ({"role": "user", "content": row["prompt"]},)),
                    row[f"response_{side}"],
                    row["gold"] == side.upper(),
                )
                for row in given
                for side in "ab"
            ],
        )


def _asked(row: dict[str, Any]) -> Prompt:
    return Prompt(row["id"], ({"role": "user", "content": row["prompt"]},))


def kind(prompt: Prompt, text: str) -> str | None:
    return degenerate.kind_of(*degenerate.marked(prompt, [Candidate("c", text)]))


def alarms(name: str, rows: Sequence[Judged], examples: str | None) -> list[str]:
    """One line of the table."""
    found, good = Counter[str](), Counter[str]()
    for prompt, text, best in rows:
        marked = kind(prompt, text)
        if marked is None:
            continue
        found[marked] += 1
        good[marked] += best
        if examples in (marked, "all"):
            shown = text if len(text) < 400 else f"{text[:200]} [...] {text[-200:]}"
            print(f"--- {name}: {marked}{', best of its prompt' if best else ''}\n{prompt.text[-300:]}\n>>> {shown}\n")
    best_count = sum(best for *_, best in rows)
    cells = [f"{found[k]} / {good[k]}" if found[k] else "" for k in KINDS]
    alarms_on_good = sum(good.values()) - good["empty"]
    return [name, f"{len(rows):,}", f"{best_count:,}", *cells, f"{alarms_on_good / max(best_count, 1):.2%}"]


def planted(rows: Sequence[Judged], each: int, seed: int) -> list[list[str]]:
    """One line a fault."""
    lines, rng = [], random.Random(seed)
    for name, plant in PLANTS.items():
        kinds, tried, left_out = Counter[str | None](), 0, 0
        for prompt, text, _ in rng.sample(list(rows), len(rows)):
            asked = str(prompt.messages[-1]["content"])
            bad = plant(asked, text, rng) if text.strip() and kind(prompt, text) is None else None
            if bad is None:
                continue
            if exempt(name, prompt):
                left_out += 1
                continue
            tried += 1
            kinds[kind(prompt, bad)] += 1
            if tried == each:
                break
        hit = 1 - kinds.pop(None, 0) / max(tried, 1)
        lines.append([name, f"{tried:,}", f"{left_out:,}", f"{hit:.2%}", ", ".join(f"{k} {n}" for k, n in kinds.most_common())])
    return lines


def cost(rows: Sequence[Judged], repeats: int = 5) -> str:
    """Microseconds an answer."""

    def per_answer(given: Sequence[tuple[Prompt, str]]) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            for prompt, text in given:
                degenerate.kind_of_text(prompt, text)
            times.append((time.perf_counter() - began) / len(given) * 1e6)
        return statistics.median(times)

    prose = " ".join(text for _, text, _ in rows[:2000])
    asked = rows[0][0]
    kilobytes = [(asked, prose[k * 1000 : k * 1000 + 1000]) for k in range(500)]
    megabyte = [(asked, (prose * (1 + 10**6 // len(prose)))[: 10**6])]
    size = sum(len(text) for _, text, _ in rows) / len(rows)
    return (
        f"{per_answer([row[:2] for row in rows]):.1f} us an answer of {size:,.0f} characters on average,"
        f" {per_answer(kilobytes):.1f} us for 1 kB, {per_answer(megabyte) / 1000:.1f} ms for 1 MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms, hits and cost of the rules about degenerate answers.")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of candidates and pairs (%(default)s)")
    parser.add_argument("--examples", metavar="KIND", help="print the answers that are marked so, or all")
    parser.add_argument("--each", type=int, default=1000, help="planted answers of each fault and file (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"there is no folder {str(args.data)!r}: give --data")
    lines, given = [], dict(files(args.data))
    for name, rows in given.items():
        lines.append(alarms(name, rows, args.examples))
    show("Alarms: all / on the best of their prompt", table(["file", "answers", "best", *KINDS, "good marked"], lines))
    sources = [name for name in ("candidates/alpacaeval", "candidates/gsm8k") if name in given]
    for name in sources:
        columns = ["planted", "answers", "exempt", "hit", "as"]
        show(f"Planted in {name}", table(columns, planted(given[name], args.each, args.seed)))
    for name in sources:
        show(f"Cost, {name}", f"{cost(given[name])}\n\n{machine()}")


if __name__ == "__main__":
    main()
