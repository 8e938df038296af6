import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxformer import InputError, causal_mask, sinusoidal_positions
from jaxformer.visualize import (
    Observation,
    alignment,
    alignment_figure,
    attention_figure,
    mask_figure,
    positions_figure,
)
from jaxformer.visualize.figures import LABELS


def rendered(figure: Figure) -> np.ndarray:
    """The picture's pixels, [height, width, 4]."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    file.seek(0)
    return matplotlib.image.imread(file)


def maps(rng: np.random.Generator, layers: int, heads: int, T: int, S: int) -> list[np.ndarray]:
    return [rng.dirichlet(np.ones(S), (heads, T)) for _ in range(layers)]


def panels(figure: Figure):
    return [axes for axes in figure.axes if axes.get_title().startswith("layer")]


def names(labels) -> list[str]:
    return [label.get_text() for label in labels]


@pytest.mark.smoke
def test_attention_maps_are_drawn_as_they_are(rng):
    drawn = maps(rng, 2, 3, 5, 7)
    figure = attention_figure(drawn, list("abcde"), list("tuvwxyz"), title="Attention")
    rendered(figure)
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles == [f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3)]
    for axes, expected in zip(panels(figure), np.concatenate(drawn), strict=True):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), expected)
        assert image.get_clim() == (0, 1)
        assert axes.yaxis_inverted()  # the first query is the top row
    for axes in panels(figure)[::3]:
        assert names(axes.get_yticklabels()) == list("abcde")
    for axes in panels(figure)[3:]:
        assert names(axes.get_xticklabels()) == list("tuvwxyz")


def test_picture_has_a_sane_size_and_is_not_empty(rng):
    pixels = rendered(attention_figure(maps(rng, 1, 2, 11, 13), ["word"] * 11, ["word"] * 13))
    height, width, _ = pixels.shape
    assert 200 < height < 800
    assert 300 < width < 1200
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50


def test_one_head_of_one_token():
    figure = attention_figure([np.ones((1, 1, 1))], ["a"], ["b"])
    rendered(figure)
    assert len(panels(figure)) == 1


def test_layers_may_have_different_numbers_of_heads(rng):
    figure = attention_figure([*maps(rng, 1, 1, 3, 3), *maps(rng, 1, 2, 3, 3)], list("abc"), list("abc"))
    assert [axes.get_title() for axes in panels(figure)] == ["layer 1, head 1", "layer 2, head 1", "layer 2, head 2"]


def test_crowded_axes_name_some_tokens_only(rng):
    T = 3 * LABELS - 1
    tokens = [str(token) for token in range(T)]
    figure = attention_figure(maps(rng, 1, 1, T, T), tokens, tokens)
    (axes,) = panels(figure)
    assert names(axes.get_xticklabels()) == tokens[::3]
    np.testing.assert_array_equal(axes.get_xticks(), np.arange(0, T, 3))


def test_many_heads_share_the_paper(rng):
    tokens = ["word"] * 199
    figure = attention_figure(maps(rng, 11, 13, 199, 199), tokens, tokens)
    assert max(figure.get_size_inches()) < 40
    assert 5 <= len(panels(figure)[0].get_yticks()) < LABELS


def test_tokens_are_text_and_never_mathematics(rng):
    tokens = ["$\\frac$", "\n", "漢字", "a$b$", ""]
    figure = attention_figure(maps(rng, 1, 1, 5, 5), tokens, tokens)
    rendered(figure)
    (axes,) = panels(figure)
    assert names(axes.get_yticklabels()) == ["$\\frac$", "↵", "□□", "a$b$", "∅"]


@pytest.mark.parametrize(("T", "S"), [(4, 7), (5, 6)])
def test_tokens_must_fit_the_maps(rng, T, S):
    with pytest.raises(InputError, match=f"{T} query and {S} key tokens do not label"):
        attention_figure(maps(rng, 1, 2, 5, 7), ["a"] * T, ["b"] * S)


def test_masks_are_drawn_as_they_are():
    causal = np.asarray(causal_mask(5))
    real = np.broadcast_to(np.arange(5) < 3, (5, 5))
    figure = mask_figure({"causal": causal, "padding": real, "both": causal & real})
    rendered(figure)
    assert [axes.get_title() for axes in figure.axes] == ["causal", "padding", "both"]
    for axes, expected in zip(figure.axes, (causal, real, causal & real), strict=True):
        np.testing.assert_array_equal(axes.collections[0].get_array(), expected)
        assert axes.yaxis_inverted()
        assert names(axes.get_xticklabels()) == list("01234")


def test_trained_positions_are_drawn_as_far_as_they_reach(rng):
    encoding = 0.02 * rng.normal(size=(29, 11))
    (image,) = positions_figure(encoding).axes[0].images
    assert image.get_clim() == (-np.abs(encoding).max(), np.abs(encoding).max())


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_positions_are_drawn_as_they_are(dim):
    encoding = np.asarray(sinusoidal_positions(29, dim))
    figure = positions_figure(encoding)
    rendered(figure)
    heat, waves = figure.axes[:2]
    np.testing.assert_array_equal(heat.images[0].get_array(), encoding.T)
    for line in waves.lines:
        dimension = int(line.get_label().removeprefix("dimension "))
        np.testing.assert_array_equal(line.get_ydata(), encoding[:, dimension])
    assert len(waves.lines) == min(4, 1 + dim // 4)


def test_words_are_joined_where_spaces_are() -> None:
    first = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.1, 0.2, 0.6], [0.3, 0.3, 0.4, 0.0]])
    seen = Observation(
        "cross", "Cross-attention", [first[None], first[None]], ["ein", " Ter", "rier"], ["a", " t", "er", "</s>"]
    )
    weights, queries, keys = alignment(seen)
    assert (queries, keys) == (["ein", "Terrier"], ["a", "ter", "</s>"])
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0.0], [0.2, 0.5, 0.3]], atol=1e-12)
    assert alignment_figure(seen).axes[0].get_title() == "Cross-attention of words, mean over all heads"


def test_symbols_without_spaces_are_words_of_their_own() -> None:
    seen = Observation("cross", "Cross-attention", [np.full((1, 2, 2), 0.5)], ["3", "1"], ["1", "3"])
    assert alignment(seen)[1:] == (["3", "1"], ["1", "3"])
