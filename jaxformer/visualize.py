"""Pictures of attention maps, masks and positions: arrays in, a matplotlib Figure out; nothing is shown or saved."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxformer.errors import InputError

COLOURS = "magma_r"
LABELS = 32  # the most tokens an axis names
CELL = 0.17  # inches of a cell whose token is named
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
    """A grid of attention maps, a row per layer and a column per head, all on one colour scale from 0 to 1.

    maps: L arrays [N, T, S], of one sequence. queries: T tokens, down. keys: S tokens, across. Raises InputError where
    the tokens do not fit the maps.
    """
    shapes = {np.shape(layer)[1:] for layer in maps}
    if shapes != {(len(queries), len(keys))}:
        raise InputError(f"{len(queries)} query and {len(keys)} key tokens do not label maps of shape {shapes}")
    L, N = len(maps), max(len(layer) for layer in maps)
    width, height = panel_size(len(keys)), panel_size(len(queries))
    figure = Figure(figsize=(N * (width + 0.25) + 1.5, L * (height + 0.35) + 1.2), layout="constrained")
    scale = Normalize(0, 1)
    grid = figure.subplots(L, N, squeeze=False, sharex=True, sharey=True)
    for layer, heads in enumerate(maps):
        for head, axes in enumerate(grid[layer]):
            if head >= len(heads):
                axes.set_axis_off()
                continue
            axes.imshow(heads[head], norm=scale, cmap=COLOURS, aspect="auto", interpolation="nearest")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=FONT + 1)
            label_axis(axes, "x", keys)
            label_axis(axes, "y", queries)
    figure.colorbar(
        ScalarMappable(scale, COLOURS),
        ax=grid,
        label="weight",
        shrink=min(1, 4 / figure.get_figheight()),
        aspect=25,
        pad=0.01,
    )
    figure.suptitle(title, fontsize=FONT + 4)
    figure.supxlabel(key_label, fontsize=FONT + 2)
    figure.supylabel(query_label, fontsize=FONT + 2)
    return figure


def mask_figure(masks: Mapping[str, np.ndarray]) -> Figure:
    """Masks side by side under their names: boolean arrays [T, S], dark where a query (down) sees a key (across)."""
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
    """A positional encoding [T, D]: above as a heat map, below four of its dimensions as waves over the positions."""
    T, D = encoding.shape
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    image = above.imshow(encoding.T, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", interpolation="nearest")
    above.set_ylabel("dimension")
    above.set_title(f"Positional encoding of {T} positions, width {D}")
    figure.colorbar(image, ax=[above, below], pad=0.01, shrink=0.6, aspect=30)
    waves = sorted({D * eighths // 16 * 2 for eighths in (1, 2, 3, 4)})
    for wave, colour in zip(waves, colormaps["viridis"](np.linspace(0, 0.85, len(waves))), strict=True):
        below.plot(encoding[:, wave], color=colour, linewidth=1.5, label=f"dimension {wave}")
    below.set_xlabel("position")
    below.set_ylabel("value")
    below.set_ylim(-1.1, 1.1)
    below.grid(alpha=0.3)
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(waves), frameon=False)
    return figure


def panel_size(cells: int, *, least: float = 1.5) -> float:
    """Inches of a panel's side: room for a name at every cell, up to `LABELS` names, and `least` at any rate."""
    return max(least, CELL * min(cells, LABELS))


def label_axis(axes: Axes, axis: str, names: Sequence[str], *, centre: float = 0.0) -> None:
    """Name the cells along axis "x" or "y", whose middles lie at index + centre; every second, third ... if crowded."""
    step = -(-len(names) // LABELS)
    places, shown = np.arange(0, len(names), step) + centre, names[::step]
    if axis == "x":
        steep = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(places, shown, fontsize=FONT, rotation=steep)
    else:
        axes.set_yticks(places, shown, fontsize=FONT)
    axes.tick_params(length=0)
