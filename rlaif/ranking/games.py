"""The fit's games and ratings in a temporary file: however many prompts there are, memory holds one chunk of them.

The chunks follow the order and the content of the prompts alone, so that equal prompts give equal sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.reading import Block, Floats, Instrument, Layer, Ranked, Rated, Reader, scale_of

_MOST_GAPS = 2**16
_MOST_RATINGS = 64  # of a prompt that gaps are taken between: 2,016 of them
_HEAD = 100_000


class Games:
    """The games and ratings of many prompts in `file`, added once each in a fixed order.

    `instruments` are numbered as they are heard; `both_orders` are those that were read in both orders of some pair: of no
    other can it be known what the first place is worth to them. `repeated`: see `Reader`. `scale` is each one's robust
    standard deviation of ratings within a prompt, 1 where there is none. `head` chunks hold the first 100,000 games or so,
    however the rest is cut; it is None where that is all.
    """

    def __init__(self, file: IO[bytes], ranked: Iterable[Ranked], chunk_size: int) -> None:
        self._file = file
        self._chunks: list[tuple[int, list[_Place]]] = []
        self._gaps: dict[int, _Gaps] = {}
        self._prompts = 0
        self.instruments: dict[Instrument, int] = {}
        self.repeated: set[int] = set()
        self.both_orders: set[int] = set()
        self.head: int | None = None
        reader, size = Reader(self.instruments, self.repeated), 0
        for ids, verdicts in ranked:
            before = reader.size
            reader.add(ids, verdicts)
            size += reader.size - before
            full = self.head is None and size >= _HEAD
            if full:
                self.head = len(self._chunks) + 1
            if full or reader.size >= chunk_size:
                self._put(reader)
                reader = Reader(self.instruments, self.repeated)
        if reader.counts:
            self._put(reader)

    def __len__(self) -> int:
        """The number of prompts."""
        return self._prompts

    def scale(self) -> Floats:
        """Each instrument's, in the order of `instruments`."""
        scale = np.ones(len(self.instruments))
        for number, gaps in self._gaps.items():
            scale[number] = gaps.scale()
        return scale

    def chunks(self) -> Iterator[tuple[int, Iterator[Block]]]:
        """(number of prompts, their blocks) of each chunk."""
        for count, places in self._chunks:
            yield count, (self._get(place) for place in places)

    def blocks(self, most: int | None = None) -> Iterator[Block]:
        """The blocks of all chunks, of the first `most`; what is written to their sites is kept for the next time."""
        for _, places in self._chunks[:most]:
            for place in places:
                block = self._get(place)
                yield block
                self._file.seek(place.start)
                self._file.write(block.precision.tobytes() + block.shift.tobytes())

    def _put(self, reader: Reader) -> None:
        places = []
        for block in reader.blocks():
            self.both_orders.update(_in_both_orders(block))
            for rated in block.rated:
                gaps = self._gaps.setdefault(rated.instrument, _Gaps())
                gaps.add(self._prompts + block.prompts, rated)
            place = _Place(self._file.seek(0, 2), block.n, [])
            for part in _parts(block):
                place.parts.append((part.dtype, part.shape))
                self._file.write(part.tobytes())
            places.append(place)
        self._prompts += len(reader.counts)
        self._chunks.append((len(reader.counts), places))

    def _get(self, place: _Place) -> Block:
        self._file.seek(place.start)
        parts: list[NDArray[Any]] = []
        for dtype, shape in place.parts:
            read = bytearray(self._file.read(dtype.itemsize * int(np.prod(shape))))
            parts.append(np.frombuffer(read, dtype=dtype).reshape(shape))
        precision, shift, prompts, one, other, heads, *rest = parts
        layers = tuple(Layer(*rest[k : k + 5]) for k in range(0, len(rest) - 2 * len(heads), 5))
        ends = rest[5 * len(layers) :]
        rated = tuple(Rated(int(number), *ends[2 * k : 2 * k + 2]) for k, number in enumerate(heads))
        return Block(prompts, place.n, one, other, layers, rated, precision, shift)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a block stands in the file, and what its arrays are like."""

    start: int
    n: int
    parts: list[tuple[np.dtype[Any], tuple[int, ...]]]


def _parts(block: Block) -> Iterator[NDArray[Any]]:
    yield from (block.precision, block.shift, block.prompts, block.one, block.other)
    yield np.array([rated.instrument for rated in block.rated], dtype=np.int32)
    for layer in block.layers:
        yield from (layer.instrument, layer.order, layer.wins, layer.total, layer.scatter)
    for rated in block.rated:
        yield from (rated.ratings, rated.weight)


def _in_both_orders(block: Block) -> set[int]:
    """The instruments that were read in both orders of some pair: a site's cells stand by instrument, then by order."""
    found: set[int] = set()
    for before, after in zip(block.layers, block.layers[1:], strict=False):
        size = len(after.order)
        same = (before.instrument[:size] == after.instrument) & (before.order[:size] != after.order)
        found.update(np.unique(after.instrument[same]).tolist())
    return found


class _Gaps:
    """Differences between ratings of a prompt: of every prompt, or of about every 2nd, 4th, ... where they grow too many."""

    def __init__(self) -> None:
        self._every = 1
        self._kept: list[tuple[NDArray[np.uint64], Floats]] = []

    def add(self, prompts: NDArray[Any], rated: Rated) -> None:
        """Takes in the unequal ones of the block's ratings; `prompts` are their numbers in the whole fit."""
        mixed = (prompts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)  # no pattern in them counts
        kept = mixed % np.uint64(self._every) == 0
        ratings = _quantiles(np.where(rated.weight[kept] > 0.0, rated.ratings[kept], np.nan))
        i, j = np.triu_indices(ratings.shape[1], 1)
        with np.errstate(over="ignore"):
            gaps = np.abs(ratings[:, i] - ratings[:, j])
        where, _ = found = np.nonzero(gaps > 0.0)
        self._kept.append((mixed[kept][where], gaps[found]))
        while sum(len(gaps) for _, gaps in self._kept) > _MOST_GAPS:
            chosen = [(numbers % np.uint64(2 * self._every) == 0, numbers, gaps) for numbers, gaps in self._kept]
            thinned = [(numbers[yes], gaps[yes]) for yes, numbers, gaps in chosen]
            if not any(len(gaps) for _, gaps in thinned):
                break
            self._every, self._kept = 2 * self._every, thinned

    def scale(self) -> float:
        """The standard deviation of the ratings within a prompt, by their gaps: see `scale_of`."""
        return scale_of(np.concatenate([gaps for _, gaps in self._kept]) if self._kept else np.zeros(0))


def _quantiles(ratings: Floats) -> Floats:
    """The ratings (prompts, n) as they are; of prompts with very many, quantiles of each one's. NaN is no rating."""
    if ratings.shape[1] <= _MOST_RATINGS:
        return ratings
    ordered = np.sort(ratings, axis=1)  # NaN last
    places = (np.arange(_MOST_RATINGS) + 0.5) / _MOST_RATINGS * np.sum(~np.isnan(ordered), axis=1, keepdims=True)
    return np.asarray(np.take_along_axis(ordered, places.astype(np.intp), axis=1))
