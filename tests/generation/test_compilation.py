"""One program per mode and shape: everything else may change without compiling again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation.chain import ChainCache, ChainModel, empty_cache, make_tables, read

from jaxformer.errors import InputError
from jaxformer.generation import decode, generate
from jaxformer.generation.compiling import PROGRAMS

V = 7
traces: list[tuple[int, ...]] = []


def counted_step(tables: jax.Array, tokens: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
    """The chain's step; it notes whenever Python runs it, which happens only while a program is being made."""
    traces.append(tokens.shape)
    return read(tables, tokens, cache)


class CountedModel(ChainModel):
    """The chain's model; it notes whenever a program is being made of it."""

    def prefill(self, tokens: jax.Array, cache: ChainCache, **which: jax.Array | None) -> tuple[jax.Array, ChainCache]:
        """Reads prompts."""
        traces.append(tokens.shape)
        return super().prefill(tokens, cache, **which)

    def step(self, tokens: jax.Array, cache: ChainCache) -> tuple[jax.Array, ChainCache]:
        """Reads one token."""
        traces.append(tokens.shape)
        return super().step(tokens, cache)


jax.tree_util.register_pytree_node(
    CountedModel,
    lambda model: ((model.tables,), (model.encoder, model.longest)),
    lambda static, leaves: rebuild(leaves[0], *static),
)


def rebuild(tables: jax.Array, encoder: bool, longest: int | None) -> CountedModel:
    """A model around whatever stands for its tables."""
    model = object.__new__(CountedModel)
    model.tables, model.encoder, model.longest = tables, encoder, longest
    return model


SAMPLING = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 2,
    "max_new_tokens": 9,
    "eos_token_id": (1, 2),
    "pad_token_id": 4,
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 2,
    "seed": 1,
}
CHANGES = [
    {"temperature": 1.7},
    {"top_k": 2},
    {"top_p": 0.3},
    {"min_p": 0.2},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 8},
    {"max_new_tokens": 17},
    {"max_new_tokens": None, "max_length": 30},
    {"min_new_tokens": None, "min_length": 9},
    {"eos_token_id": (5, 6)},
    {"pad_token_id": None},
    {"forced_bos_token_id": 6},
    {"forced_eos_token_id": 5},
    {"seed": 2},
]
BEAMS = SAMPLING | {"do_sample": False, "num_beams": 3, "length_penalty": 1.5, "early_stopping": False}
BEAM_CHANGES = [
    *CHANGES[4:-1],
    {"length_penalty": -1.0},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"num_return_sequences": 3},
]


@pytest.mark.parametrize(("base", "changes"), [(SAMPLING, CHANGES), (BEAMS, BEAM_CHANGES)])
def test_settings_are_no_part_of_the_program(base: dict, changes: list[dict]) -> None:
    """Each setting changed, and other weights: nothing is compiled again, and yet the output changes."""
    vocabulary = 23
    prompts = np.repeat(np.arange(vocabulary), 3)[:, None]

    def call(settings: dict, seed: int = 0) -> list:
        tables = make_tables(np.random.default_rng(seed), vocabulary, scale=1.0)
        tables[:, [1, 2, 5, 6]] += 1.0  # sequences end early, but not all
        tables[:, 7] += 2.0  # repetitions are likely
        step = jax.tree_util.Partial(counted_step, jnp.asarray(tables))
        return decode(step, empty_cache(len(prompts)), prompts, **settings).sequences.tolist()

    first = call(base)
    traces.clear()
    made = PROGRAMS.made
    assert call(base) == first
    for change in changes:
        assert call(base | change) != first, change
        assert not traces, change
    assert call(base, seed=1) != first
    assert not traces
    assert PROGRAMS.made == made
    call(base | {"repetition_penalty": 1.0})
    assert traces  # a mode of its own: the counter counts
    assert PROGRAMS.made == made + 1


def draw_everything(rng: np.random.Generator, beams: int) -> dict:
    """A setting for all that a program takes as an argument; what selects the program stays the same."""
    ids = rng.permutation(V).tolist()
    return {
        "num_beams": beams,
        "num_return_sequences": int(rng.integers(1, beams + 1)),
        "length_penalty": float(rng.normal()),
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "do_sample": True,
        "temperature": float(rng.uniform(0.5, 2)),
        "top_k": int(rng.integers(1, 9)),
        "top_h": float(rng.uniform(0.1, 1)),
        "top_p": float(rng.uniform(0.1, 0.99)),
        "min_p": float(rng.uniform(0, 0.5)),
        "typical_p": float(rng.uniform(0.1, 0.99)),
        "epsilon_cutoff": float(rng.uniform(1e-5, 0.1)),
        "eta_cutoff": float(rng.uniform(1e-5, 0.1)),
        "sequence_bias": [[ids[: rng.integers(1, 4)], float(rng.normal())] for _ in range(rng.integers(1, 5))],
        "bad_words_ids": [ids[2 : rng.integers(4, 6)] for _ in range(rng.integers(1, 5))],
        "repetition_penalty": float(rng.uniform(1.1, 2)),
        "encoder_repetition_penalty": float(rng.uniform(1.1, 2)),
        "no_repeat_ngram_size": int(rng.integers(2, 5)),
        "encoder_no_repeat_ngram_size": int(rng.integers(2, 5)),
        "forced_bos_token_id": ids[2],
        "forced_eos_token_id": ids[3],
        "suppress_tokens": ids[: rng.integers(1, 3)],
        "begin_suppress_tokens": ids[: rng.integers(1, 3)],
        "exponential_decay_length_penalty": (int(rng.integers(5)), float(rng.uniform(1, 2))),
        "min_new_tokens": int(rng.integers(1, 9)),
        "max_new_tokens": int(rng.integers(1, 30)),
        "eos_token_id": ids[4:6],
        "pad_token_id": int(rng.integers(V)),
        "renormalize_logits": True,
        "seed": int(rng.integers(100)),
    }


@pytest.mark.parametrize("beams", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_two_hundred_calls_are_one_program(beams: int, rng: np.random.Generator) -> None:
    """Every setting that can be drawn, prompts of any length in a bucket, padded or not, other weights each time."""
    refused, made = 0, PROGRAMS.made
    for number in range(100):
        model, length = CountedModel(make_tables(rng, V), encoder=False), int(rng.integers(2, 32))
        mask = np.arange(length) >= np.array([[1], [rng.integers(length)]])  # one prompt is padded every time
        settings = draw_everything(rng, beams) | ({"num_return_sequences": 2} if beams == 1 else {})
        try:
            generate(model, rng.integers(V, size=(2, length)), inputs_mask=mask, **settings)
        except InputError:  # what was drawn excludes every token
            refused += 1
        assert bool(traces) == (number == 0)
        traces.clear()
    assert refused < 50
    assert PROGRAMS.made == made + 1


@pytest.mark.parametrize("encoder", [False, True])
def test_lengths_share_a_bucket(encoder: bool, rng: np.random.Generator) -> None:
    """Prompts, sources and limits of many lengths run in one program, and so do other weights."""
    tables = make_tables(rng, V)
    call = {"num_beams": 2, "eos_token_id": 3, "decoder_start_token_id": 1}
    generate(CountedModel(tables, encoder), rng.integers(V, size=(2, 5)), max_new_tokens=9, **call)
    assert traces
    traces.clear()
    for length, new in ((1, 1), (2, 30), (17, 9), (32, 32)):
        inputs = rng.integers(V, size=(2, length))
        generate(CountedModel(make_tables(rng, V), encoder), inputs, max_new_tokens=new, **call)
    assert not traces
    generate(CountedModel(tables, encoder), rng.integers(V, size=(2, 33)), max_new_tokens=32, **call)
    assert traces
    traces.clear()


def test_a_single_start_token_is_read_alone(rng: np.random.Generator) -> None:
    """Behind an encoder it has a program of its own; longer prompts share one."""
    model, sources = CountedModel(make_tables(rng, V), encoder=True), rng.integers(V, size=(2, 5))
    for lengths, slots in (([1], 1), ([2, 3, 31], 32)):
        for number, length in enumerate(lengths):
            start = np.full((2, length), 1)
            generate(model, sources, decoder_input_ids=start, decoder_start_token_id=1, max_new_tokens=9)
            assert traces[:1] == ([] if number else [(2, slots)])
            traces.clear()
