"""Attention maps of generated sequences against `generate(output_attentions=True)` of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compilation import FUSED
from hf_models import EOS, PAD, save_decoder, save_model

from jaxformer import InputError, decode, generate, stream
from jaxformer.backends import cpu
from jaxformer.generation import Generated, api, compiling
from jaxformer.pretrained import from_pretrained

LIMIT = 9
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
}


@pytest.fixture(params=["marian", pytest.param("bart", marks=pytest.mark.slow)])
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model of transformers and ours from its folder."""
    return save_model(request.param, tmp_path), from_pretrained(tmp_path)


def inputs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Padded sources and which of their tokens are real."""
    return rng.integers(3, 45, (3, 6)), np.arange(6) < np.array([6, 3, 4])[:, None]


def step_maps(expected: Any, kind: str, row: int, step: int) -> np.ndarray:
    """Their maps [L, N, keys] of the step that chose the token `step` of a sequence, followed through its beams."""
    beams = getattr(expected, "beam_indices", None)
    beam = row if beams is None else int(beams[row, step])
    return np.stack([layer[beam, :, -1].numpy() for layer in getattr(expected, kind)[step]])


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches with their loops fused, as users have them: without, two programs round their sums in other orders."""
    for name, value in FUSED.items():
        monkeypatch.setitem(cpu.FEW_ROWS_OPTIONS, name, value)
    anew = compiling.Compiled(api.generate_compiled.function)
    monkeypatch.setattr(api, "generate_compiled", anew)


@pytest.mark.usefixtures("fused")
@pytest.mark.slow
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_maps_of_every_step_follow_the_beams(pair: tuple[Any, Any], search: str, rng: np.random.Generator) -> None:
    reference, lm = pair
    model, base = lm.model, lm.generation
    source, valid = inputs(rng)
    settings = {"max_new_tokens": LIMIT, "eos_token_id": EOS, **SEARCHES[search]}
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor(source),
            attention_mask=torch.tensor(valid),
            return_dict_in_generate=True,
            output_attentions=True,
            output_scores=True,
            do_sample=False,
            **settings,
        )
    plain = generate(model, source, base, inputs_mask=valid, **settings)
    found = generate(model, source, base, inputs_mask=valid, output_attentions=True, **settings)
    assert found.sequences.tolist() == plain.sequences.tolist() == expected.sequences.tolist()
    assert found.sequences_scores.tolist() == plain.sequences_scores.tolist()
    maps, compared = found.attentions, 0
    assert maps is not None
    for row, sequence in enumerate(found.sequences.tolist()):
        length = sequence.index(EOS) + 1 if EOS in sequence else len(sequence)
        for step in range(length - 1):
            for ours, kind in ((maps.decoder, "decoder_attentions"), (maps.cross, "cross_attentions")):
                theirs = step_maps(expected, kind, row, step)
                our = np.stack([layer[row, :, step] for layer in ours])
                np.testing.assert_allclose(our[..., : theirs.shape[-1]], theirs, rtol=0, atol=1e-5)
                assert (our[..., theirs.shape[-1] :] == 0).all()
                compared += 1
        assert all((layer[row, :, length - 1 :] == 0).all() for layer in (*maps.decoder, *maps.cross))
    assert compared > 30
    real = np.broadcast_to(valid[:, None, :, None], maps.encoder[0].shape)
    for ours, theirs in zip(maps.encoder, expected.encoder_attentions, strict=True):
        np.testing.assert_allclose(ours[real], theirs.numpy()[real][: ours[real].shape[0]], rtol=0, atol=1e-5)


def forward_maps(reference: Any, source: np.ndarray, valid: np.ndarray, found: Generated, copies: int) -> Any:
    """What their plain forward says of our sequences."""
    rows = np.repeat(np.arange(len(source)), copies)
    with torch.no_grad():
        return reference(
            torch.tensor(source[rows]),
            attention_mask=torch.tensor(valid[rows]),
            decoder_input_ids=torch.tensor(found.sequences[:, :-1]),
            output_attentions=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("search", [{"do_sample": True}, {"num_beams": 2}], ids=["sampled", "beams"])
def test_maps_of_sequences_without_end(pair: tuple[Any, Any], search: dict, rng: np.random.Generator) -> None:
    """Each sample and each beam has maps of its own, whatever stands behind the last token."""
    reference, lm = pair
    model, base = lm.model, lm.generation
    source, valid = inputs(rng)
    settings = {"num_return_sequences": 2, "max_new_tokens": LIMIT, "eos_token_id": None} | search
    found = generate(model, source, base, inputs_mask=valid, output_attentions=True, **settings)
    expected = forward_maps(reference, source, valid, found, copies=2)
    assert found.attentions is not None
    pairs = (
        (found.attentions.decoder, expected.decoder_attentions),
        (found.attentions.cross, expected.cross_attentions),
    )
    for ours, theirs in pairs:
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(our, their.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "phi3-unusual"])
def test_maps_of_a_decoder_alone(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Behind prompts that are padded on the left: every row, real queries and keys, and nothing else.

    Phi-3 would take other rotary frequencies, were it asked for positions behind the last token.
    """
    reference: Any = save_decoder(name, tmp_path)
    lm = from_pretrained(tmp_path)
    model, base = lm.model, lm.generation
    valid = np.arange(5) >= np.array([0, 3])[:, None]
    prompts = np.where(valid, rng.integers(3, 45, (2, 5)), PAD)
    settings = {"max_new_tokens": LIMIT, "min_new_tokens": LIMIT, "eos_token_id": EOS}
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor(prompts),
            attention_mask=torch.tensor(valid),
            return_dict_in_generate=True,
            output_attentions=True,
            do_sample=False,
            **settings,
        )
    found = generate(model, prompts, base, inputs_mask=valid, output_attentions=True, **settings)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert found.attentions is not None
    for step in range(LIMIT):
        for ours, theirs in zip(found.attentions.decoder, expected.attentions[step], strict=True):
            kept = theirs.shape[-1]  # a window keeps but the last keys
            np.testing.assert_allclose(
                ours[:, :, 4 + step, 5 + step - kept : 5 + step], theirs[:, :, -1].numpy(), rtol=0, atol=1e-5
            )
    assert all((layer[1, :, 3:, :3] == 0).all() for layer in found.attentions.decoder)


def test_what_shows_no_attention_says_so(pair: tuple[Any, Any], rng: np.random.Generator) -> None:
    _, lm = pair
    model, base = lm.model, lm.generation
    source, _ = inputs(rng)
    with pytest.raises(InputError, match="attention maps belong to whole generations"):
        next(stream(model, source, base, output_attentions=True, max_new_tokens=2))
    with pytest.raises(InputError, match="a step shows no attention"):
        decode(model, (), source, output_attentions=True)
