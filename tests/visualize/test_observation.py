import doctest
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import InputError
from jaxformer.visualize import Observation, entropies, observation, visible


def test_entropy_in_bits():
    one, all_alike, half = np.eye(1, 8)[0], np.full(8, 1 / 8), np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    nothing = np.zeros(8)
    heads = np.array([[one, one], [all_alike, one], [half, half], [all_alike, nothing], [nothing, nothing]])
    np.testing.assert_allclose(entropies(heads), [0, 1.5, 1, 3, 0], atol=1e-12)


def test_self_attention_has_the_same_tokens_on_both_sides(rng):
    maps = [rng.dirichlet(np.ones(3), (2, 3))]
    assert Observation("decoder", "", maps, "abc").sources == "abc"
    with pytest.raises(InputError, match="3 query and 2 key tokens do not label"):
        Observation("cross", "", maps, "abc", "de")
    with pytest.raises(InputError, match="0 query and 0 key tokens do not label"):
        Observation("decoder", "", [], "")


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        ("the", "the"),
        (" the", "␣the"),
        ("", "∅"),
        ("\r\n\t", "␍↵⇥"),
        ("\x00\x1b[0m\x7f", "␀␛[0m␡"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("\ud800", "⟨U+D800⟩"),
        ("\xa0\u3000", "⟨U+00A0⟩⟨U+3000⟩"),
        ("日本😀é", "日本😀é"),
    ],
)
def test_tokens_are_made_visible(token, seen):
    assert visible(token) == seen


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_nothing_invisible_remains(token):
    assert visible(token)
    assert not {unicodedata.category(letter) for letter in visible(token)} & {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"}


def test_examples_in_docstrings():
    assert doctest.testmod(observation).failed == 0
