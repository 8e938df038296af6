"""Laws that hold for every shape of model: caches, padding, causality, gradients, dropout, attention maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import FUSED
from flax import nnx
from torch_reference import flat

from jaxformer import (
    InputError,
    Transformer,
    TransformerConfig,
    cross_entropy,
    decoder_only,
    encoder_decoder,
    encoder_only,
    modern_decoder_only,
)
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    LatentAttentionConfig,
    LongRopeScaling,
    MoEConfig,
    RMSNormConfig,
    Rope,
)

V, S, T, B = 29, 7, 11, 3


@functools.cache
def make(config: TransformerConfig) -> Transformer:
    """A model whose biases and norms are random too, so that nothing hides behind zeros and ones."""
    rng = np.random.default_rng(6)

    def filled(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(mean + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(filled, jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(5))))


def unusual(config: TransformerConfig) -> TransformerConfig:
    """The same decoder with a window of 3 keys, two key-value heads, normed queries and keys, capped scores, sinks.

    And with experts in place of feed-forward networks.
    """
    attention = AttentionConfig(4, kv_heads=2, window=3, softcap=5.0, query_key_norm=RMSNormConfig(), sinks=True)
    experts = MoEConfig(5, 2, FeedForwardConfig(13, "silu", gated=True))
    block = dataclasses.replace(config.decoder.blocks[0], attention=attention, feed_forward=experts)
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=(block,) * 2))


def latent(config: TransformerConfig) -> TransformerConfig:
    """The same with latent attention, over the source too."""
    own = LatentAttentionConfig(4, 9, 7, 6, 4, 5, rope=Rope())
    across = LatentAttentionConfig(4, 8, None, 6, 0) if config.encoder else None
    block = dataclasses.replace(config.decoder.blocks[0], attention=own, cross=across)
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=(block,) * 2))


POST = encoder_decoder(V, dim=20, layers=2, heads=4, dropout=0.0)
PRE = encoder_decoder(V, source_vocab_size=31, dim=20, layers=2, heads=4, norm_order="pre", dropout=0.0)
GPT = decoder_only(V, length=17, dim=20, layers=2, heads=4)
BERT = encoder_only(V, length=17, dim=20, layers=2, heads=4)
MODERN = modern_decoder_only(V, dim=24, layers=2, heads=4, kv_heads=2)
DECODERS = {"post": POST, "pre": PRE, "gpt": GPT, "unusual": unusual(GPT), "modern": MODERN}
DECODERS |= {"latent": latent(GPT), "latent over latents": latent(PRE)}
# Layers of latent attention are looked at closely by themselves.
OFTEN = [pytest.param(name, marks=pytest.mark.slow) if "latent" in name else name for name in DECODERS]


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 0, V)


forward = jax.jit(Transformer.__call__)
extend = jax.jit(Transformer.extend)
prefill = jax.jit(Transformer.prefill)
step = jax.jit(Transformer.step)


def full(model: Transformer, target: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Logits of decoder ids [B, T], over a fixed source where the model has an encoder."""
    if model.encoder is None:
        return forward(model, target, inputs_mask=valid)
    return forward(model, tokens(target.shape[0], S, seed=1), target, targets_mask=valid)


@functools.partial(jax.jit, static_argnames=("rows", "slots"))
def cache_for(model: Transformer, rows: int, slots: int) -> object:
    encoded = None if model.encoder is None else model.encode(tokens(rows, S, seed=1))
    return model.init_cache(rows, slots, encoded=encoded)


@pytest.mark.parametrize("name", OFTEN)
@pytest.mark.parametrize(
    ("slots", "chunks"),
    [
        (T, (4, 1, 1, 5)),
        (T + 6, (1, 9, 1)),
        pytest.param(T, (T,), marks=pytest.mark.slow),
        pytest.param(T + 6, (T,), marks=pytest.mark.slow),
        pytest.param(T + 6, (1,) * T, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_chunking_equals_the_full_forward(name: str, slots: int, chunks: tuple[int, ...]) -> None:
    model, target = make(DECODERS[name]), tokens(B, T)
    expected = full(model, target)
    cache, start, parts = cache_for(model, B, slots), 0, []
    for size in chunks:
        hidden, cache = extend(model, target[:, start : start + size], cache)
        parts.append(model.logits(hidden))
        start += size
    assert int(cache.length) == T
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OFTEN)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_token(name: str, side: str) -> None:
    model, target = make(DECODERS[name]), tokens(B, T)
    pad = 4
    junk = tokens(B, pad, seed=9)
    expected = full(model, target)
    parts, marks = [junk, target], [jnp.zeros((B, pad), bool), jnp.ones((B, T), bool)]
    if side == "right":
        parts, marks = parts[::-1], marks[::-1]
    padded = full(model, jnp.concatenate(parts, 1), jnp.concatenate(marks, 1))
    real = padded[:, pad:] if side == "left" else padded[:, :T]
    np.testing.assert_allclose(real, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt", "unusual", "modern", pytest.param("latent", marks=pytest.mark.slow)])
def test_packed_sequences_do_not_know_each_other(name: str) -> None:
    model, sequences = make(DECODERS[name]), [tokens(1, size, seed=size) for size in (5, 3, 4)]
    segment_ids = np.repeat([[7, 2, 3]], [5, 3, 4], axis=1)
    packed = forward(model, jnp.concatenate(sequences, axis=1), segment_ids=segment_ids)
    alone = [forward(model, sequence) for sequence in sequences]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), rtol=0, atol=1e-5)


def test_models_with_an_encoder_are_not_packed() -> None:
    with pytest.raises(InputError, match="segment_ids are for decoder-only models"):
        make(BERT)(tokens(B, S), segment_ids=jnp.ones((B, S), int))


@pytest.mark.parametrize("name", ["gpt", "unusual", pytest.param("latent", marks=pytest.mark.slow)])
def test_left_padded_prompt_then_steps_equal_the_unpadded_run(name: str) -> None:
    model, target = make(DECODERS[name]), tokens(1, T)
    prompt, pad = 5, 3
    expected = full(model, target)[:, prompt - 1 :]
    room = jnp.concatenate([tokens(1, pad, seed=4), target[:, :prompt], tokens(1, 2, seed=8)], axis=1)
    valid = jnp.array([[False] * pad + [True] * prompt + [False] * 2])
    cache = model.init_cache(1, 16)
    logits, cache = prefill(model, room, cache, length=jnp.int32(pad + prompt), mask=valid)
    outputs = [logits]
    for index in range(prompt, T):
        logits, cache = step(model, target[:, index : index + 1], cache)
        outputs.append(logits)
    np.testing.assert_allclose(jnp.stack(outputs, axis=1), expected, rtol=0, atol=1e-5)


def test_prompt_room_without_padding_marks() -> None:
    model, target = make(GPT), tokens(B, T)
    room = jnp.concatenate([target[:, :5], tokens(B, 12, seed=8)], axis=1)
    logits, cache = prefill(model, room, model.init_cache(B, 20), length=jnp.int32(5))
    assert cache.valid is None
    np.testing.assert_allclose(logits, full(model, target)[:, 4], rtol=0, atol=1e-5)
    logits, _ = step(model, target[:, 5:6], cache)
    np.testing.assert_allclose(logits, full(model, target)[:, 5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_source_tokens_change_nothing(config: TransformerConfig, side: str) -> None:
    model, source, target = make(config), tokens(B, S), tokens(B, T, seed=2)
    pad = 3
    expected = forward(model, source, target)
    for seed in (3, 4):
        parts, marks = [tokens(B, pad, seed=seed), source], [jnp.zeros((B, pad), bool), jnp.ones((B, S), bool)]
        if side == "right":
            parts, marks = parts[::-1], marks[::-1]
        actual = forward(model, jnp.concatenate(parts, 1), target, inputs_mask=jnp.concatenate(marks, 1))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OFTEN)
def test_a_future_token_changes_no_earlier_logit(name: str) -> None:
    model, target = make(DECODERS[name]), tokens(B, T)
    position = 6
    changed = target.at[:, position].set((target[:, position] + 1) % V)
    before, after = full(model, target), full(model, changed)
    np.testing.assert_array_equal(before[:, :position], after[:, :position])
    assert np.abs(before[:, position] - after[:, position]).max() > 1e-3


@pytest.mark.parametrize("name", OFTEN)
def test_selected_rows_are_copies_though_few_slots_move(name: str) -> None:
    """Beams over two sources, which change places and go on: as if every row were copied whole each time."""
    model, rng, beams = make(DECODERS[name]), np.random.default_rng(0), 3
    _, cache = extend(model, tokens(2, 3), cache_for(model, 2, 20))
    cache = cache.reorder(jnp.repeat(jnp.arange(2), beams))
    reorder = jax.jit(type(cache).reorder)
    for seed in range(12):
        _, cache = extend(model, tokens(2 * beams, 1, seed=seed), cache)
        rows = jnp.asarray(np.concatenate([rng.integers(0, beams, beams), beams + rng.integers(0, beams, beams)]))
        copied = jax.tree.map(functools.partial(take_rows, rows), cache.layers)
        cache = reorder(cache, rows)
        for moved, whole in zip(cache.layers, copied, strict=True):
            jax.tree.map(
                np.testing.assert_array_equal, moved.prefix(int(cache.length)), whole.prefix(int(cache.length))
            )


def take_rows(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    """Those rows of an array [B ...], or [B K, ...]."""
    return leaf.reshape(len(rows), -1, *leaf.shape[1:])[rows].reshape(leaf.shape)


def test_an_encoder_sees_both_sides() -> None:
    model, inputs = make(BERT), tokens(B, S)
    changed = inputs.at[:, S - 1].set((inputs[:, S - 1] + 1) % V)
    assert np.abs(forward(model, inputs)[:, 0] - forward(model, changed)[:, 0]).max() > 1e-3


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_an_encoder_ends_in_a_norm_in_either_order(norm_order: str) -> None:
    config = encoder_only(V, length=17, dim=20, layers=2, heads=4, norm_order=norm_order)
    assert (config.encoder.final_norm is None) == (norm_order == "post")
    model = Transformer(config, rngs=nnx.Rngs(0))
    states = np.asarray(model(tokens(B, S), return_intermediates=True).encoder.hidden_states[-1])
    # A norm divides by the root of variance + epsilon, 1e-5: 1 is nearly reached.
    np.testing.assert_allclose(states.std(axis=-1), 1, atol=1e-4)
    np.testing.assert_allclose(states.mean(axis=-1), 0, atol=1e-5)


@pytest.mark.parametrize("name", [*OFTEN, "bert"])
def test_rows_do_not_know_each_other(name: str) -> None:
    model, target = make({**DECODERS, "bert": BERT}[name]), tokens(B, T)
    source = tokens(B, S, seed=1)
    rows = np.array([2, 0, 0, 1])
    arguments = (source, target) if model.encoder and model.decoder else (target,)
    expected = forward(model, *arguments)[rows]
    np.testing.assert_allclose(forward(model, *(array[rows] for array in arguments)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_every_parameter_learns_except_key_biases(layers: int, norm_order: str) -> None:
    config = encoder_decoder(
        V, source_vocab_size=31, dim=20, layers=layers, heads=4, norm_order=norm_order, dropout=0.0
    )
    # As a run begins: through six layers of large random weights all source tokens become one, and keys learn nothing.
    model = Transformer(config, rngs=nnx.Rngs(5))
    source, target = tokens(B, S), tokens(B, T, seed=2)

    def loss(model: Transformer) -> jax.Array:
        return cross_entropy(model(source, target[:, :-1]), target[:, 1:])

    norms = {name: np.linalg.norm(gradient) for name, gradient in flat(jax.jit(jax.grad(loss))(model)).items()}
    largest = max(norms.values())
    for name, norm in norms.items():
        if name.endswith("key.bias"):
            # A bias on every key adds the same number q.b to all scores of a query: the softmax does not see it.
            assert norm < 1e-6 * largest, name
        else:
            assert norm > 1e-6 * largest, name


def test_sinusoids_are_no_parameters() -> None:
    """Computed for any length, and nothing that an optimiser could move."""
    config = encoder_decoder(11, dim=8, layers=1, heads=2)
    model = Transformer(config, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(model.encoder.positions)) + jax.tree.leaves(nnx.state(model.decoder.positions))
    tokens = jax.ShapeDtypeStruct((1, 3000), int)
    assert jax.eval_shape(forward, model, tokens, tokens).shape == (1, 3000, 11)


@pytest.mark.parametrize("config", [POST, PRE, GPT, BERT], ids=["post", "pre", "gpt", "bert"])
def test_observing_changes_nothing_and_maps_are_distributions(config: TransformerConfig) -> None:
    model, target = make(config), tokens(B, T)
    source = tokens(B, S, seed=1)
    arguments = (source, target) if model.encoder and model.decoder else (target,)
    valid = jnp.asarray(np.arange(arguments[0].shape[1]) < np.array([5, 3, 4])[:, None])
    plain, seen = (
        jax.jit(method, compiler_options=FUSED)(model, *arguments, inputs_mask=valid)
        for method in (Transformer.__call__, functools.partial(Transformer.__call__, return_intermediates=True))
    )
    np.testing.assert_array_equal(plain, seen.logits)
    for trace in (seen.encoder, seen.decoder):
        for weights in (*trace.attentions, *trace.cross_attentions):
            np.testing.assert_allclose(weights.sum(axis=-1), np.ones(weights.shape[:-1]), rtol=1e-6)
    if model.decoder:
        assert len(seen.decoder.hidden_states) == 3
        causal = np.triu(np.ones((T, T), bool), 1)
        assert all((np.asarray(weights)[:, :, causal] == 0).all() for weights in seen.decoder.attentions)
        np.testing.assert_allclose(model.logits(seen.decoder.hidden_states[-1]), plain, rtol=0, atol=1e-5)
    if model.encoder:
        hidden_keys = ~np.asarray(valid)
        for weights in (*seen.encoder.attentions, *seen.decoder.cross_attentions):
            masked = np.broadcast_to(hidden_keys[:, None, None, :], weights.shape)
            assert (np.asarray(weights)[masked] == 0).all()


@pytest.mark.slow
def test_what_is_observed_and_not_used_costs_nothing() -> None:
    """The gradient of a loss that takes only logits and routing from it: the same work, and no map is kept."""
    model, ids = make(DECODERS["unusual"]), tokens(B, T)

    def work(logits: object) -> tuple[float, int]:
        program = jax.jit(jax.value_and_grad(lambda model: cross_entropy(logits(model), ids))).lower(model).compile()
        return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes

    assert work(lambda model: model(ids, return_intermediates=True).logits) == work(lambda model: model(ids))
    routing = model(ids, return_intermediates=True).decoder.routing
    assert [(each.logits.shape, each.experts.shape) for each in routing] == [((B, T, 5), (B, T, 2))] * 2
    np.testing.assert_allclose(routing[0].probabilities.sum(-1), 1, rtol=1e-6)


def test_dropout_needs_a_key_and_follows_it() -> None:
    config = encoder_decoder(V, dim=20, layers=2, heads=4, dropout=0.3)
    model, source, target = make(config), tokens(B, S), tokens(B, T)
    np.testing.assert_array_equal(forward(model, source, target), forward(make(POST), source, target))
    first, again, other = (forward(model, source, target, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_gradient_of_one_model_is_one_program_for_all_weights() -> None:
    program = jax.jit(lambda model, target: model(target))
    for factor in (1, 2):
        program(jax.tree.map(lambda leaf, factor=factor: factor * leaf, make(GPT)), tokens(B, T))
    assert program._cache_size() == 1


def long_rope() -> Transformer:
    """A model whose frequencies change at 3 tokens: a step across them reads all tokens again."""
    config = modern_decoder_only(V, dim=20, layers=1, heads=2, kv_heads=2)
    scaling = LongRopeScaling((1.0,) * 5, (2.0,) * 5, length=3)
    (block,) = config.decoder.blocks
    attention = dataclasses.replace(block.attention, rope=Rope(scaling=scaling))
    decoder = dataclasses.replace(config.decoder, blocks=(dataclasses.replace(block, attention=attention),))
    return make(dataclasses.replace(config, decoder=decoder))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(POST)(tokens(B, S)), "needs inputs and targets"),
        (lambda: make(GPT)(tokens(B, S), tokens(B, T)), "needs inputs alone"),
        (lambda: make(GPT).encode(tokens(B, S)), "no encoder"),
        (lambda: make(BERT).init_cache(B, T), "encoder-only"),
        (lambda: make(GPT).extend(tokens(B, T), make(GPT).init_cache(B, 4)), "do not fit a cache of 4 slots"),
        (lambda: long_rope().step(tokens(B, T), long_rope().init_cache(B, 4)), "do not fit a cache of 4 slots"),
        (lambda: make(GPT)(jnp.ones((B, T))), "tokens must be integers"),
        (lambda: encoder_decoder(V, dim=20, heads=3), "3 heads do not divide the model width 20"),
        (lambda: AttentionConfig(4, kv_heads=3), "not a multiple"),
        (lambda: BlockConfig(dropout=1.0), "dropout"),
        (lambda: TransformerConfig(20), "needs an encoder"),
    ],
)
def test_misuse_is_explained(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_an_id_outside_the_vocabulary_is_never_another_token() -> None:
    model = make(GPT)
    for wrong in (-1, V, 10_000):
        assert np.isnan(forward(model, jnp.array([[wrong]]))).all()
    assert np.isnan(forward(model, tokens(1, 1), position_ids=jnp.array([[17]]))).all()
