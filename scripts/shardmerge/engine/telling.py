"""Bands of keys that tell whether thresholds are right, by how many elements lie in each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shardmerge.methods.passes import GREATEST_KEY, KeyBand, Ranks

#: Number of a value, and a band of its keys.
Telling = tuple[int, KeyBand]
#: (rank from the least, key) that must go together.
Side = tuple[int, int]
_ALL = 0, 1 << 62


def telling_bands(
    bands: Sequence[KeyBand], ranks: Sequence[Ranks], asking: Collection[int]
) -> list[Telling]:
    """Return what tells of the bands of ranks: what is not 0, then what is before and in each.

    Args:
        bands: Of each value.
        ranks: Of each value; of none there is nothing to tell.
        asking: Numbers of the values whose ranks depend on how many are not 0.
    """
    told = [(k, KeyBand(1, GREATEST_KEY, _ALL, _ALL)) for k in asking]
    for k, (band, one) in enumerate(zip(bands, ranks, strict=True)):
        if one.start < one.stop:
            told += [(k, _before(band, one)), (k, band)]
    return told


def telling_sides(sides: Sequence[Sequence[Side]]) -> list[Telling]:
    """Return what tells of keys of some ranks: what is less than each, and what is no more.

    Args:
        sides: Of each value.
    """
    return [
        (k, KeyBand(0, most, _ALL, _ALL))
        for k, pairs in enumerate(sides)
        for _, key in pairs
        for most in (key - 1, key)
    ]


def sides_of(ranks: Ranks, low: int, high: int, count: int) -> list[Side]:
    """Return what must be so of the keys between which some ranks lie.

    Args:
        ranks: That are chosen.
        low, high: The keys.
        count: Elements.
    """
    first, last = ranks.start, ranks.stop - 1
    if first > last:
        return []
    if ranks.descending:
        first, last = count - 1 - last, count - 1 - first
    pairs = ((first, low, first > 0), (last, high, last < count - 1))
    return [(rank, key) for rank, key, matters in pairs if matters]


def _before(band: KeyBand, ranks: Ranks) -> KeyBand:
    """Return the band of the elements of lower ranks."""
    if ranks.descending:
        return KeyBand(band.high, GREATEST_KEY, (0, band.at_high[0]), _ALL)
    return KeyBand(-1, band.low, (0, 0), (0, band.at_low[0]))
