"""Generation settings: what is refused, and what follows from them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig, decode


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 0},
        {"num_beams": 2.0},
        {"num_return_sequences": 0},
        {"num_return_sequences": 2},
        {"num_return_sequences": 4, "num_beams": 3},
        {"num_return_sequences": 4, "num_beams": 3, "do_sample": True},
        {"top_p": 2},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_k": None},
        {"min_p": 1.5},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": -2},
        {"max_new_tokens": 0},
        {"max_length": 0},
        {"min_length": -1},
        {"min_length": 5, "max_length": 4},
        {"early_stopping": "always"},
        {"length_penalty": "long"},
        {"eos_token_id": -1},
        {"eos_token_id": ()},
        {"eos_token_id": "2"},
        {"eos_token_id": (1, 2.5)},
        {"pad_token_id": -1},
        {"do_sample": 1},
        {"seed": -1},
        {"top_h": 0.0},
        {"typical_p": 0.0},
        {"epsilon_cutoff": 1.0},
        {"eta_cutoff": -0.1},
        {"bad_words_ids": [3]},
        {"bad_words_ids": [[]]},
        {"sequence_bias": [[[3], "more"]]},
        {"suppress_tokens": [-1]},
        {"encoder_repetition_penalty": 0},
        {"encoder_no_repeat_ngram_size": -1},
        {"exponential_decay_length_penalty": (3,)},
        {"renormalize_logits": 1},
        {"early_stopping": 0},
        {"eos_token_id": 2**31},
        {"forced_eos_token_id": [2**63]},
        {"begin_suppress_tokens": 2**63},
        {"length_penalty": 1e39},
        {"temperature": 1e-300},
        {"repetition_penalty": 10**400},
        {"sequence_bias": [[[3], 1e300]]},
        {"exponential_decay_length_penalty": (2**31, 1.5)},
        {"stop_strings": b"x"},
        {"seed": [1.5]},
    ],
)
def test_refused(settings: dict) -> None:
    """The message names the setting and its value."""
    name, value = next(iter(settings.items()))
    with pytest.raises(InputError, match=name) as error:
        GenerationConfig(**settings)
    assert repr(value)[:38] in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
    "value", ["x\n" * 9999, list(range(9999)), np.zeros((9, 99)), object(), {}, [[]], b"x", 1j, len]
)
def test_any_value_of_another_type_is_refused_in_a_line(value: object) -> None:
    """By every setting, of whatever length the value is."""
    accepted = {"stop_strings", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "seed"}
    accepted |= {"eos_token_id", "forced_eos_token_id"}  # texts, token ids, seeds
    for field in dataclasses.fields(GenerationConfig):
        if field.name in accepted:
            continue
        with pytest.raises(InputError, match=field.name) as error:
            GenerationConfig(**{field.name: value})
        assert len(str(error.value)) <= 300
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["forced_bos_token_id", "forced_eos_token_id"])
def test_a_token_cannot_be_forced_and_suppressed(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=3 is among suppress_tokens"):
        GenerationConfig(**{name: 3}, suppress_tokens=[2, 3])
    with pytest.raises(InputError, match="forced_eos_token_id=3, 2 is among"):
        GenerationConfig(forced_eos_token_id=[3, 2], suppress_tokens=[2, 3])
    GenerationConfig(**{name: 4}, suppress_tokens=[2, 3])
    GenerationConfig(forced_eos_token_id=[3, 4], suppress_tokens=[2, 3])


def test_arrays_are_taken_as_lists() -> None:
    config = GenerationConfig(eos_token_id=np.array([1, 2]), seed=np.array(3), suppress_tokens=jnp.array([4]))
    assert config == GenerationConfig(eos_token_id=[1, 2], seed=3, suppress_tokens=[4])


def test_unknown_settings_name_the_nearest() -> None:
    """A typing error is told from what was meant."""
    with pytest.raises(InputError, match="unknown generation setting 'num_beam': did you mean 'num_beams'"):
        GenerationConfig().replace(num_beam=3)
    with pytest.raises(InputError, match="did you mean 'max_new_tokens'"):
        GenerationConfig().replace(max_tokens=3)


@pytest.mark.parametrize("name", ["use_cache", "penalty_alpha", "streamer", "x" * 9999])
def test_what_is_like_no_setting_is_not_guessed(name: str) -> None:
    with pytest.raises(InputError, match="jaxformer.stream" if name == "streamer" else "GenerationConfig") as error:
        GenerationConfig().replace(**{name: 3})
    assert "did you mean" not in str(error.value)
    assert len(str(error.value)) < 200


def test_replace() -> None:
    """Only what is named changes, and it is checked."""
    config = GenerationConfig(num_beams=4, eos_token_id=[1, 2])
    assert config.replace(top_k=3) == GenerationConfig(num_beams=4, eos_token_id=[1, 2], top_k=3)
    with pytest.raises(InputError, match="num_return_sequences"):
        config.replace(num_return_sequences=5)


def test_length_limits() -> None:
    """New tokens go before whole lengths, and twenty new ones are the default, cut to the positions."""
    assert GenerationConfig().length_limits(5) == (0, 25)
    assert GenerationConfig().length_limits(50, 64) == (0, 64)
    assert GenerationConfig(max_length=9).length_limits(5) == (0, 9)
    assert GenerationConfig(max_length=9, max_new_tokens=7).length_limits(5) == (0, 12)
    assert GenerationConfig(min_length=7, max_length=6, max_new_tokens=7).length_limits(5) == (7, 12)
    assert GenerationConfig(min_length=3, min_new_tokens=4).length_limits(5) == (9, 25)
    assert GenerationConfig(max_new_tokens=4, min_new_tokens=6).length_limits(5) == (11, 9)  # no EOS at all
    for config, prompt, longest in (
        (GenerationConfig(max_length=5), 5, None),
        (GenerationConfig(max_length=11), 5, 10),
        (GenerationConfig(max_new_tokens=6), 5, 10),
        (GenerationConfig(), 10, 10),
        (GenerationConfig(min_length=26), 5, None),
    ):
        with pytest.raises(InputError):
            config.length_limits(prompt, longest)


def test_a_step_must_be_a_pytree() -> None:
    """A bare function would be compiled at every call: the message says what to do."""
    with pytest.raises(InputError, match=r"jax\.tree_util\.Partial"):
        decode(lambda tokens, cache: (tokens, cache), (), [[1]])
