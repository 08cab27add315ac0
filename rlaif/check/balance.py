"""What only all rows together show: whether chosen is longer, and whether the labels may stand on their heads.

What tells a reversed file is what right labels hardly ever do. On nine public sets with human or objective labels the chosen
answer was the longer one in 0.46 to 0.73 of the pairs, and the answer that loops, echoes, refuses without a reason or says
nothing was the rejected one in 52 of 58 pairs where one of the two did. So: a share of longer chosen answers that is surely
below LEAST_LONGER, or worthless answers that stand surely mostly on the chosen side. Sets that were balanced for length and
have no worthless answers show nothing, and nothing is said of them. Answers that break off are no sign: both sides of a pair
were mostly cut at the same limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlaif.check.answers import fault
from rlaif.check.findings import Fault
from rlaif.check.formats import Example
from rlaif.check.structure import SCORES
from rlaif.intervals import sign_test, wilson

LEAST_LONGER = 0.40
"""With an interval below it, chosen is the shorter one on purpose or by a reversed label; see above."""
MOST_LONGER = 0.70
"""With an interval above it, "the longer one" is a better rule than most of what is to be learnt."""
SURE = 0.01
"""The p-value of the sign test for worthless answers on the chosen side: six of six are not enough, seven of seven are."""
LEAST_ROWS = 30
"""Of fewer pairs or labels nothing is said: files that small are samples by hand."""
MOSTLY = 0.75
"""And their share there: many rows make a small excess sure."""
MOST_ON_ONE_SIDE = 4 / 3
"""KTO is to see desirable and undesirable answers in a ratio between 1:1 and 4:3 of their weights (Ethayarajh et al. 2024)."""


@dataclass(slots=True)
class Balance:
    """Counts over all rows. `add` each row, then read `lengths` and `faults`."""

    pairs: int = 0
    unequal: int = 0
    longer: int = 0
    characters: list[int] = field(default_factory=lambda: [0, 0])
    worthless: Counter[str] = field(default_factory=Counter)
    scored: list[int] = field(default_factory=lambda: [0, 0])
    labels: Counter[bool] = field(default_factory=Counter)

    def add(self, example: Example) -> Iterator[Fault]:
        """Counts a row, and yields what is wrong with the answer that is to be taught."""
        if example.format.kind == "unpaired":
            self.labels[bool(example.row.get("label", example.row.get("kto_tag")))] += 1
        found = []
        if example.format.kind not in ("stepwise", "ranked"):
            names = (name for name, _ in example.answers)
            found = [fault(example, name, text) for name, text in zip(names, example.texts, strict=True)]
        taught = example.format.kind != "unpaired" or example.row.get("label") is True
        if found and found[0] is not None and taught:
            yield found[0]
        if not example.is_pair:
            return
        chosen, rejected = map(len, example.texts)
        self.pairs += 1
        self.unequal += chosen != rejected
        self.longer += chosen > rejected
        self.characters[0] += chosen
        self.characters[1] += rejected
        first, second = (
            not text.strip() or (bad is not None and bad[0] != "truncated")
            for bad, text in zip(found, example.texts, strict=True)
        )
        if first != second:
            self.worthless["chosen" if first else "rejected"] += 1
        for better, worse in SCORES:
            high, low = example.row.get(better), example.row.get(worse)
            if isinstance(high, (int, float)) and isinstance(low, (int, float)) and high != low:
                self.scored[high < low] += 1

    def lengths(self) -> dict[str, float | int | list[float]] | None:
        """P(chosen is longer) over pairs of unequal lengths, its 95 % interval, mean characters; None without such pairs."""
        if not self.unequal:
            return None
        return {
            "longer_chosen": self.longer,
            "unequal": self.unequal,
            "p": self.longer / self.unequal,
            "interval": list(wilson(self.longer, self.unequal)),
            "mean_chars_chosen": self.characters[0] / self.pairs,
            "mean_chars_rejected": self.characters[1] / self.pairs,
        }

    def faults(self) -> Iterator[Fault]:
        """What the counts show."""
        if self.unequal >= LEAST_ROWS:
            low, high = wilson(self.longer, self.unequal)
            share = f"chosen is longer in {self.longer} of {self.unequal} pairs, 95 % interval {low:.2f} to {high:.2f}"
            if low > MOST_LONGER:
                yield "longer_chosen", share
            if high < LEAST_LONGER:
                yield "reversed", f"{share}; right labels are hardly ever below {LEAST_LONGER:.2f}"
        chosen, rejected = self.worthless["chosen"], self.worthless["rejected"]
        if chosen > MOSTLY * (chosen + rejected) and sign_test(chosen, chosen + rejected) < SURE:
            yield (
                "reversed",
                f"of the {chosen + rejected} pairs with one worthless answer (empty, a loop, ...) it is chosen in {chosen}",
            )
        right, wrong = self.scored
        if wrong > right and sign_test(wrong, right + wrong) < SURE:
            yield "reversed", f"chosen has the lower score in {wrong} of {right + wrong} pairs with scores"
        few, many = sorted((self.labels[True], self.labels[False]))
        if many > MOST_ON_ONE_SIDE * few and many + few >= LEAST_ROWS:
            yield "unbalanced", f"{self.labels[True]} true, {self.labels[False]} false"
