"""The whole library in a minute, without PyTorch and transformers: every kind of model, generation, files, programs."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import TINY
from flax import nnx
from generation.beam_oracle import Settings, beam_search, log_softmax

import jaxformer
from jaxformer import (
    Transformer,
    TransformerConfig,
    cross_entropy,
    decoder_only,
    encoder_decoder,
    encoder_only,
    modern_decoder_only,
)
from jaxformer.__main__ import main
from jaxformer.config import FeedForwardConfig, MoEConfig
from jaxformer.presets import deepseek_tiny

pytestmark = pytest.mark.smoke
V, B, S, T = 29, 3, 7, 11


def with_experts(config: TransformerConfig) -> TransformerConfig:
    """The same decoder of one layer, with experts as its feed-forward network."""
    network = MoEConfig(5, 2, FeedForwardConfig(13, "silu", gated=True))
    block = dataclasses.replace(config.decoder.blocks[0], feed_forward=network)
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=(block,)))


def last_layer(config: TransformerConfig) -> TransformerConfig:
    """The same decoder with its last layer only."""
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=config.decoder.blocks[-1:]))


MODELS = {
    "encoder-decoder": encoder_decoder(V, dim=20, layers=2, heads=4, dropout=0.0),
    "encoder": encoder_only(V, length=17, dim=20, layers=1, heads=4),
    "gpt2": decoder_only(V, length=17, dim=20, layers=2, heads=4),
    "llama": modern_decoder_only(V, dim=24, layers=1, heads=4, kv_heads=2),
    "experts": with_experts(decoder_only(V, length=17, dim=20, layers=1, heads=4)),
    "deepseek": last_layer(deepseek_tiny(V)),
}
FAMILIES = ("gpt2", "llama", "deepseek")  # can be written as folders of Hugging Face


@functools.cache
def make(name: str) -> Transformer:
    """A model whose parameters are all random, so that nothing hides behind zeros and ones."""
    rng = np.random.default_rng(6)
    model = Transformer(MODELS[name], rngs=nnx.Rngs(5))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), model)


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    """Random token ids, none of them 0, 1 or 2."""
    return jax.random.randint(jax.random.key(seed), shape, 3, V)


def logits(model: Transformer, ids: jax.Array) -> jax.Array:
    """The logits [B, T, V] of a model, over a fixed source where it has an encoder and a decoder."""
    if model.encoder is None or model.decoder is None:
        return model(ids)
    return model(tokens(ids.shape[0], S, seed=1), ids)


def test_attention_is_the_formula(rng: np.random.Generator) -> None:
    """softmax(Q K^T / sqrt(H)) V of "Attention Is All You Need", equation 1, in NumPy and float64."""
    query, key, value = (rng.normal(size=(2, length, 3, 5)) for length in (4, 6, 6))  # [B, T or S, N, H]
    mask = rng.random((2, 1, 4, 6)) < 0.7
    mask[..., 0] = True
    scores = np.where(mask, np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(5), -np.inf)  # [B, N, T, S]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, value)
    arrays = (jnp.asarray(array, jnp.float32) for array in (query, key, value))
    found = jaxformer.dot_product_attention(*arrays, mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_compiled_and_not_compiled_agree() -> None:
    model, ids = make("gpt2"), tokens(B, T)
    np.testing.assert_allclose(jax.jit(logits)(model, ids), logits(model, ids), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_changes_along_its_gradient_as_fast_as_that_says(name: str) -> None:
    model, ids, labels = make(name), tokens(B, T), tokens(B, T, seed=2)

    def loss(model: Transformer) -> jax.Array:
        return cross_entropy(logits(model, ids), labels)

    assert jax.jit(logits)(model, ids).shape == (B, T, V)
    slopes = jax.jit(jax.value_and_grad(loss))
    value, gradients = slopes(model)
    assert np.isfinite(value)
    size = float(jax.tree.reduce(lambda total, leaf: total + jnp.sum(leaf**2), gradients, 0.0)) ** 0.5
    assert 1e-3 < size < 1e4
    step = 1e-3 / size
    moved = jax.tree.map(lambda leaf, change: leaf + step * change, model, gradients)
    assert float(slopes(moved)[0] - value) == pytest.approx(step * size**2, rel=0.1)


@pytest.mark.parametrize("name", ["encoder-decoder", *FAMILIES])
def test_greedy_decoding_takes_the_likeliest_token_of_a_full_forward_pass(name: str) -> None:
    model, prompt = make(name), tokens(2, 3)
    forward = jax.jit(logits)
    ids = np.zeros((2, 3 + 5), np.int32)  # a decoder does not see what follows
    if name == "encoder-decoder":
        begin, given = 1, tokens(2, S, seed=1)
    else:
        begin, given, ids[:, :3] = 3, prompt, prompt
    for place in range(begin, begin + 5):
        ids[:, place] = np.argmax(forward(model, jnp.asarray(ids))[:, place - 1], -1)
    found = jaxformer.generate(model, given, max_new_tokens=5, decoder_start_token_id=0, eos_token_id=None)
    np.testing.assert_array_equal(found.sequences, ids[:, : begin + 5])


def test_beam_search_is_that_of_the_oracle() -> None:
    model, prompts = make("llama"), tokens(2, 3).tolist()
    forward = jax.jit(logits)

    def next_logits(sequence: list[int]) -> list[float]:
        padded = jnp.asarray([sequence + [0] * (9 - len(sequence))])
        return forward(model, padded)[0, len(sequence) - 1].tolist()

    expected = beam_search(next_logits, prompts, Settings(4, 9, (2,)))
    found = jaxformer.generate(
        model, prompts, max_new_tokens=6, num_beams=4, num_return_sequences=4, eos_token_id=2, pad_token_id=2
    )
    beams = [beam for finished in expected for beam in finished]
    width = found.sequences.shape[1]
    assert found.sequences.tolist() == [beam.tokens + [2] * (width - len(beam.tokens)) for beam in beams]
    np.testing.assert_allclose(found.sequences_scores, [beam.score for beam in beams], rtol=0, atol=1e-5)


def test_samples_come_as_often_as_the_model_says() -> None:
    model, prompt = make("gpt2"), tokens(1, 3)
    found = jaxformer.generate(
        model, prompt, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=4000, seed=3, eos_token_id=None
    )
    frequency = np.bincount(found.sequences[:, -1], minlength=V) / 4000
    expected = np.exp(log_softmax(jax.jit(logits)(model, prompt)[0, -1].tolist()))
    assert np.all(np.abs(frequency - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_hugging_face_is_written_and_opened(name: str, tmp_path: Path) -> None:
    model, ids = make(name), tokens(2, 5)
    jaxformer.save_pretrained(jaxformer.as_pretrained(model, longest=17), tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors"} <= files
    opened = jaxformer.from_pretrained(tmp_path).model
    forward = jax.jit(logits)
    np.testing.assert_array_equal(forward(opened, ids), forward(model, ids))


def test_a_run_is_trained_resumed_asked_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "--task", "copy"]
    main([*train, *TINY, "--steps", "4", "--save-every", "2"])
    main([*train, "--resume", "--steps", "6"])
    run = tmp_path / "runs/copy"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (run / "report.html").exists()
    assert capsys.readouterr().out.splitlines()[-1] == "next: jaxformer generate --beam 4"
    main(["generate", "--beam", "2", "--input", "3 1 4", "--json"])
    assert json.loads(capsys.readouterr().out)["source"] == "3 1 4"
    main(["inspect", "--checkpoint", str(run)])
    assert "parameters" in capsys.readouterr().out
