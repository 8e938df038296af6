"""Attention as plain text: a heat map of Unicode blocks that fits a terminal."""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxformer.errors import InputError
from jaxformer.visualize.observation import Observation, visible

WIDTH = 100  # columns of a terminal
NAME = 14  # the most columns that a token's name takes, beside a row or above a column
SHADES = ((0.0, " "), (math.ulp(0.0), "\u00b7"), (0.05, "\u2591"), (0.2, "\u2592"), (0.4, "\u2593"), (0.7, "\u2588"))


def heat_map(observation: Observation, *, layer: int, head: int | None = None) -> str:
    """Return one map as text of at most 100 columns: a row per query, blocks the darker the larger the weight.

    layer and head count from one; head None: the mean over the layer's heads. Where the keys outnumber the columns,
    neighbours share a column and their weights add up. Raises InputError for a layer or head that is not there.
    """
    weights, name = chosen_map(observation, layer, head)
    S = weights.shape[1]
    queries, keys = ([visible(token) for token in tokens] for tokens in (observation.queries, observation.sources))
    left = min(NAME, max(map(columns, queries)))
    room = WIDTH - left - 1
    group = -(-S // room)  # keys that share a column
    cell = 2 if room >= 2 * S else 1
    shared = np.add.reduceat(weights, np.arange(0, S, group), axis=1)
    margin = " " * (left + 1)
    lines = [f"{observation.title}, {name}"]
    lines += [f"each column adds up {group} keys and is named after the first of them"] * (group > 1)
    lines += ["", *(f"{margin}{line}".rstrip() for line in upright(keys[::group], cell))]
    for query, row in zip(queries, shared, strict=True):
        blocks = "".join(shade(weight) * cell for weight in row.tolist())
        lines.append(f"{aligned(query, left)} {blocks}".rstrip())
    return "\n".join([*lines, "", f"{margin}{legend()}"])


def chosen_map(observation: Observation, layer: int, head: int | None) -> tuple[np.ndarray, str]:
    """Return the map [T, S] of a head, or of a layer's heads on average, and what it is. Both count from one."""
    L = len(observation.maps)
    if not 1 <= layer <= L:
        raise InputError(f"there is no layer {layer} in the {observation.name}: choose one of 1 to {L}")
    heads = observation.maps[layer - 1]
    N = len(heads)
    if head is None:
        return heads.mean(axis=0), f"layer {layer} of {L}, mean of {N} heads"
    if not 1 <= head <= N:
        raise InputError(f"there is no head {head} in layer {layer} of the {observation.name}: choose one of 1 to {N}")
    return heads[head - 1], f"layer {layer} of {L}, head {head} of {N}"


def shade(weight: float) -> str:
    """Return the block for a weight: blank where it is exactly zero, a dot where it is too small for a block."""
    return next(block for least, block in reversed(SHADES) if weight >= least)


def legend() -> str:
    """Return what the blocks mean."""
    steps = [f"{block * 2} {least:g}" for least, block in SHADES[2:]]
    return f"from {'   '.join(steps)}   \u00b7\u00b7 less   blank: zero"


def upright(names: Sequence[str], cell: int) -> list[str]:
    """Return the names written downwards, each over a column of `cell` columns, ending on the same line."""
    written = [letters(shortened(name, NAME)) for name in names]
    height = max(map(len, written))
    padded = [[" "] * (height - len(name)) + name for name in written]
    fitting = [[letter if columns(letter) <= cell else "\u25a1" for letter in name] for name in padded]
    return ["".join(letter + " " * (cell - columns(letter)) for letter in line) for line in zip(*fitting, strict=True)]


def letters(name: str) -> list[str]:
    """Return the letters of a name, each with the accents that follow it."""
    found: list[str] = []
    for character in name:
        if found and unicodedata.combining(character):
            found[-1] += character
        else:
            found.append(character)
    return found


def aligned(name: str, width: int) -> str:
    """Return the name at the right end of `width` columns, shortened where it is longer."""
    cut = shortened(name, width)
    return " " * (width - columns(cut)) + cut


def shortened(name: str, width: int) -> str:
    """Return the name if it fits `width` columns, otherwise its beginning and an ellipsis."""
    if columns(name) <= width:
        return name
    while columns(name) > width - 1:
        name = name[:-1]
    return f"{name}\u2026"


def columns(text: str) -> int:
    """Return how many columns of a terminal the text takes: East Asian characters and emoji two, accents none."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )
