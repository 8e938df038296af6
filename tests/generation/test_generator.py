"""Weights prepared for decoding are kept as long as they are right, and no longer."""

import gc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import Generator, Transformer, decoder_only, generate
from jaxformer.backends.cpu import FEW_ROWS
from jaxformer.generation.compiling import Flat
from jaxformer.generation.prepared import OF_MODELS, model_and_weights, weights_dtype


def make_model(seed: int = 0) -> Transformer:
    return Transformer(decoder_only(131, length=24, dim=128, layers=1, heads=4), rngs=nnx.Rngs(seed))


def laid_out(model: object, rows: int) -> tuple[Flat, Flat]:
    """The model as it reads, and as it decodes so many rows."""
    model, weights = model_and_weights(model)
    return weights.layouts(model, rows)


def test_a_model_is_laid_out_once_for_few_rows_and_once_for_many() -> None:
    model = make_model()
    (_, few), (_, many) = laid_out(model, 1), laid_out(model, FEW_ROWS + 1)
    assert few is not many
    assert all(laid_out(model, rows)[1] is few for rows in range(1, FEW_ROWS + 1))
    assert laid_out(model, FEW_ROWS + 7)[1] is many


def test_what_stays_as_it_is_is_not_copied() -> None:
    model = make_model()
    own = {id(leaf) for leaf in jax.tree.leaves(model)}
    reading, stepping = laid_out(model, 1)
    assert {id(leaf) for leaf in reading.leaves} == own
    copied = [leaf.shape for leaf in stepping.leaves if id(leaf) not in own]
    assert sorted(copied) == [(128, 128)] * 4 + [(128, 512), (512, 128)]


def test_new_weights_are_laid_out_anew() -> None:
    """Also where only one has changed, and in place; and what was made of the old is what generates no more."""
    model, other = make_model(), make_model(seed=1)
    settings = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    expected = [generate(each, [[3, 4]], **settings).sequences for each in (model, other)]
    assert not np.array_equal(*expected)
    nnx.update(model, nnx.state(other))
    np.testing.assert_array_equal(generate(model, [[3, 4]], **settings).sequences, expected[1])
    _, before = laid_out(model, 1)
    norm = model.decoder.blocks[0].attention_norm.scale
    norm[...] = norm[...] * 2
    assert laid_out(model, 1)[1] is not before


def test_what_is_kept_goes_with_the_model() -> None:
    model, before = make_model(), len(OF_MODELS)
    laid_out(model, 1), laid_out(model, 9)
    assert len(OF_MODELS[model].kept) == 2
    assert len(OF_MODELS) == before + 1
    del model
    gc.collect()
    assert len(OF_MODELS) == before


def test_a_generator_owns_what_it_prepares() -> None:
    """And generates what the functions do."""
    model = make_model()
    generator, call = Generator(model), {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    expected = generate(make_model(), [[3, 4]], **call).sequences
    np.testing.assert_array_equal(generator.generate([[3, 4]], **call).sequences, expected)
    np.testing.assert_array_equal(np.concatenate(list(generator.stream([[3, 4]], **call)), axis=1), expected[:, 2:])
    session = generator.session([[3, 4]], **call)
    while not session.finished:
        session.advance()
    np.testing.assert_array_equal(session.result().sequences, expected)
    assert model not in OF_MODELS
    assert laid_out(generator, 1)[1] is laid_out(generator, 1)[1]


def test_arrays_that_can_change_are_not_kept() -> None:
    model = jax.tree.map(np.array, make_model())
    _, before = laid_out(model, 1)
    assert laid_out(model, 1)[1] is not before
    assert not OF_MODELS[model].kept


def test_a_model_that_cannot_be_referred_to_weakly_is_not_kept() -> None:
    class Tuple(NamedTuple):
        table: jax.Array

        def with_position_ids_from(self, rule: str) -> "Tuple":
            return self

        def optimize_for_decoding(self, batch_size: int) -> "Tuple":
            return self

    model = Tuple(jnp.ones(3))
    assert laid_out(model, 1)[1].tree.table is model.table


@pytest.mark.parametrize("rows", [1, 9])
def test_a_model_of_8_bits_needs_nothing(rows: int) -> None:
    model = make_model().quantize()
    for one, other in zip(*[flat.leaves for flat in laid_out(model, rows)], strict=True):
        assert one is other, jnp.shape(one)


def test_the_first_leaf_of_a_model_may_be_anything() -> None:
    for leaf in (3.0, jax.random.key(0), jnp.arange(3), jnp.ones(2, jnp.float8_e5m2)):
        assert weights_dtype([leaf, jnp.ones(2, jnp.bfloat16)]) in (jnp.bfloat16, jnp.float8_e5m2)
    assert weights_dtype([]) == weights_dtype([3.0, jax.random.key(0)]) == jnp.float32
