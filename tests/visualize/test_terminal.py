import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.visualize import Observation, heat_map
from jaxformer.visualize.terminal import WIDTH, columns, shade

LEGEND = "from ░░ 0.05   ▒▒ 0.2   ▓▓ 0.4   ██ 0.7   ·· less   blank: zero"


def observation(weights: list[list[float]], queries, keys=None) -> Observation:
    heads = np.array([weights])
    return Observation("decoder", "Self-attention", [np.eye(*heads.shape[1:])[None], heads], queries, keys)


def test_a_map_as_text():
    weights = [[1, 0, 0], [0.01, 0.99, 0], [0.1, 0.3, 0.6]]
    assert heat_map(observation(weights, ["It", " is", "\n"]), layer=2, head=1).splitlines() == [
        "Self-attention, layer 2 of 2, head 1 of 1",
        "",
        "      ␣",
        "    I i",
        "    t s ↵",
        " It ██",
        "␣is ··██",
        "  ↵ ░░▒▒▓▓",
        "",
        f"    {LEGEND}",
    ]


def test_by_default_the_mean_over_heads(rng):
    heads = rng.dirichlet(np.ones(5), (3, 5)) * np.tri(5)
    text = heat_map(Observation("decoder", "", [heads], list("abcde")), layer=1)
    assert "mean of 3 heads" in text
    mean = heads.mean(axis=0)
    drawn = [line.split(" ", 1)[1] for line in text.splitlines()[3:8]]
    assert drawn == ["".join(2 * shade(weight) for weight in row).rstrip() for row in mean.tolist()]
    assert [len(line) for line in drawn] == [2, 4, 6, 8, 10]  # blank where masked, and only there


@pytest.mark.parametrize(
    ("weight", "block"),
    [(0.0, " "), (1e-45, "·"), (0.049, "·"), (0.05, "░"), (0.2, "▒"), (0.4, "▓"), (0.7, "█"), (1.0001, "█")],
)
def test_shades(weight, block):
    assert shade(weight) == block


@pytest.mark.parametrize(("S", "cells"), [(1, 2), (42, 84), (43, 43), (85, 85), (86, 43), (199, 67)])
def test_fits_a_terminal(S, cells):
    tokens = ["extraordinarily long"] * S
    text = heat_map(observation([[1 / S] * S], ["extraordinarily long"], tokens), layer=2)
    assert max(map(columns, text.splitlines())) <= WIDTH
    (row,) = [line for line in text.splitlines() if line.startswith("extraordinari… ")]
    assert len(row) == 15 + cells


def test_weights_of_keys_that_share_a_column_add_up():
    weights = np.zeros(199)
    weights[[3, 4, 5, 198]] = 0.15, 0.15, 0.15, 0.55
    text = heat_map(observation([list(weights)], ["query"], [str(key) for key in range(199)]), layer=2)
    assert "each column adds up 3 keys" in text
    assert f"query  ▓{' ' * 64}▓" in text


def test_wide_letters_and_accents_stay_aligned():
    text = heat_map(observation(list(np.eye(3)), ["漢字", "e\u0301t", "x"]), layer=2)
    lines = text.splitlines()
    assert lines[2:4] == ["     漢e\u0301", "     字t x"]
    assert lines[4:7] == ["漢字 ██", "  e\u0301t   ██", "   x     ██"]
    crowded = heat_map(observation([[1 / 50] * 50], ["q"], ["漢"] * 50), layer=2).splitlines()
    assert crowded[2] == "  " + "□" * 50  # there is one column for each


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (0, None, "no layer 0 in the decoder: choose one of 1 to 2"),
        (3, None, "no layer 3"),
        (1, 0, "no head 0 in layer 1 of the decoder: choose one of 1 to 1"),
        (1, 2, "no head 2"),
    ],
)
def test_layers_and_heads_that_are_not_there(layer, head, message):
    with pytest.raises(InputError, match=message):
        heat_map(observation([[1.0]], ["a"]), layer=layer, head=head)
