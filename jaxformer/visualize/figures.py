"""Pictures of attention maps, masks and positions: arrays in, a matplotlib Figure out; nothing is shown or saved."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font

from jaxformer.visualize.observation import Observation, alignment, check_tokens, visible

COLOURS = "magma_r"
LABELS = 32  # the most tokens an axis names
CELL = 0.17  # inches of a cell whose token is named
PAPER = 30  # inches of all panels of a row or a column; at 120 dots an inch, a picture that every program opens
FONT = 8


def attention_figure(
    maps: Sequence[np.ndarray],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    title: str = "",
    query_label: str = "queries",
    key_label: str = "keys",
) -> Figure:
    """Draw a grid of attention maps, a row per layer and a column per head, all on one colour scale from 0 to 1.

    Args:
        maps: L arrays [N, T, S], of one sequence.
        queries: T tokens, down.
        keys: S tokens, across.
        title: Title of the figure.
        query_label: Label of the axis of queries.
        key_label: Label of the axis of keys.

    Raises:
        InputError: The tokens do not fit the maps.
    """
    check_tokens(maps, queries, keys)
    L, N = len(maps), max(len(layer) for layer in maps)
    width, height = (min(panel_size(len(tokens)), PAPER / max(L, N)) for tokens in (keys, queries))
    figure = Figure(figsize=(N * (width + 0.25) + 1.5, L * (height + 0.35) + 1.2), layout="constrained")
    scale = PowerNorm(0.5, 0, 1)  # the square root spreads the small weights of long sequences
    grid = figure.subplots(L, N, squeeze=False)
    for layer, heads in enumerate(maps):
        for head, axes in enumerate(grid[layer]):
            if head >= len(heads):
                axes.set_axis_off()
                continue
            axes.imshow(heads[head], norm=scale, cmap=COLOURS, aspect="auto", interpolation="nearest")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=FONT + 1)
            axes.set(xticks=(), yticks=())
    for axes in grid[-1]:  # only the outermost panels name their cells
        label_axis(axes, "x", keys, most=int(width / CELL))
    for axes in grid[:, 0]:
        label_axis(axes, "y", queries, most=int(height / CELL))
    figure.colorbar(
        ScalarMappable(scale, COLOURS),
        ax=grid,
        label="weight",
        ticks=(0, 0.01, 0.1, 0.25, 0.5, 1),
        shrink=min(1, 4 / figure.get_figheight()),
        aspect=25,
        pad=0.01,
    )
    figure.suptitle(title, fontsize=FONT + 4)
    figure.supxlabel(key_label, fontsize=FONT + 2)
    figure.supylabel(query_label, fontsize=FONT + 2)
    return figure


def alignment_figure(observation: Observation) -> Figure:
    """Draw how much words attend to words, the mean over all heads of all layers: see `alignment`."""
    weights, queries, keys = alignment(observation)
    width, height = (2 * panel_size(len(words)) for words in (keys, queries))
    figure = Figure(figsize=(width + 2.2, height + 1.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, norm=PowerNorm(0.5, 0, 1), cmap=COLOURS, aspect="auto", interpolation="nearest")
    label_axis(axes, "x", keys)
    label_axis(axes, "y", queries)
    axes.set_title(f"{observation.title} of words, mean over all heads", fontsize=FONT + 3)
    axes.set_xlabel(observation.key_label, fontsize=FONT + 2)
    axes.set_ylabel(observation.query_label, fontsize=FONT + 2)
    figure.colorbar(image, label="weight", ticks=(0, 0.01, 0.1, 0.25, 0.5, 1), aspect=25, pad=0.02)
    return figure


def mask_figure(masks: Mapping[str, np.ndarray]) -> Figure:
    """Draw masks side by side under their names.

    Boolean arrays [T, S], dark where a query (down) sees a key (across).
    """
    size = panel_size(max(max(np.shape(mask)) for mask in masks.values()), least=2.2)
    figure = Figure(figsize=(len(masks) * (size + 0.5) + 0.4, size + 1.0), layout="constrained")
    grid = figure.subplots(1, len(masks), squeeze=False)
    for axes, (name, mask) in zip(grid[0], masks.items(), strict=True):
        T, S = mask.shape
        axes.pcolormesh(mask, vmin=0, vmax=1.4, cmap="Blues", edgecolors="white", linewidth=1)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_title(name, fontsize=FONT + 3)
        label_axis(axes, "x", [str(key) for key in range(S)], centre=0.5)
        label_axis(axes, "y", [str(query) for query in range(T)], centre=0.5)
        axes.spines[:].set_visible(False)
    figure.supxlabel("key (dark: visible)", fontsize=FONT + 2)
    figure.supylabel("query", fontsize=FONT + 2)
    return figure


def positions_figure(encoding: np.ndarray) -> Figure:
    """Draw a positional encoding [T, D]: above as a heat map, below four of its dimensions as waves over the positions.

    Sinusoids are drawn from -1 to 1, trained vectors as far as they reach.
    """
    T, D = encoding.shape
    reach = float(np.abs(encoding).max())
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    image = above.imshow(encoding.T, vmin=-reach, vmax=reach, cmap="RdBu_r", aspect="auto", interpolation="nearest")
    above.set_ylabel("dimension")
    above.set_title(f"Positional encoding of {T} positions, width {D}")
    figure.colorbar(image, ax=[above, below], pad=0.01, shrink=0.6, aspect=30)
    waves = sorted({D * eighths // 16 * 2 for eighths in (1, 2, 3, 4)})
    for wave, colour in zip(waves, colormaps["viridis"](np.linspace(0, 0.85, len(waves))), strict=True):
        below.plot(encoding[:, wave], color=colour, linewidth=1.5, label=f"dimension {wave}")
    below.set_xlabel("position")
    below.set_ylabel("value")
    below.set_ylim(-1.1 * reach, 1.1 * reach)
    below.grid(alpha=0.3)
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(waves), frameon=False)
    return figure


def panel_size(cells: int, *, least: float = 1.5) -> float:
    """Return a panel's side in inches: room for a name at every cell, up to `LABELS` names, and `least` at any rate."""
    return max(least, CELL * min(cells, LABELS))


def label_axis(axes: Axes, axis: str, names: Sequence[str], *, centre: float = 0.0, most: int = LABELS) -> None:
    """Name the cells along axis "x" or "y", whose middles lie at index + centre; every second, third ... if crowded."""
    step = -(-len(names) // most)
    places, shown = np.arange(0, len(names), step) + centre, [drawable(name) for name in names[::step]]
    if axis == "x":
        steep = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(places, shown, fontsize=FONT, rotation=steep, parse_math=False)
    else:
        axes.set_yticks(places, shown, fontsize=FONT, parse_math=False)
    axes.tick_params(length=0)


def drawable(name: str) -> str:
    """Return the token as the font of pictures can write it: an empty box for each character that is not in it."""
    return "".join(letter if font().get_char_index(ord(letter)) else "\u25a1" for letter in visible(name))


@cache
def font() -> FT2Font:
    """Return the font of pictures."""
    return get_font(findfont(FontProperties()))
