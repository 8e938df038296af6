"""A model of transformers beside ours from its folder, and how far apart they are.

Distances are the largest differences, relative to the largest reference entry where that exceeds 1.
"""

import os
import zlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
import pytest
import torch
from hf_decoders import FURTHER
from hf_encoders import ENCODERS, FURTHER_ENCODERS, heads, save_encoder
from hf_models import DECODERS, MODELS, PAD, VOCAB, save_decoder, save_model
from transformers.core_model_loading import revert_weight_conversion

from jaxformer import Transformer, cross_entropy
from jaxformer.pretrained import FAMILIES, Pretrained, from_pretrained, save_pretrained
from jaxformer.pretrained.files import read_tensors
from jaxformer.pretrained.weights import WeightTable, named, place
from jaxformer.schema import load_json

Batch = dict[str, np.ndarray]
# All of them: name -> what writes the model to a folder and returns it.
SAVERS: dict[str, Callable[[Path], Any]] = {
    **{name: partial(save_decoder, name) for name in DECODERS},
    **{name: partial(save_model, name) for name in MODELS},
    **{f"{name}-{head}": partial(save_encoder, name, head) for name in ENCODERS for head in heads(name)},
}
# Models of further families, which tests of the slow run open. Fields of our configuration that came with them are
# shown every time by a few.
FURTHER_NAMES = {*FURTHER, *(f"{name}-{head}" for name in FURTHER_ENCODERS for head in heads(name))}
NEW_FIELDS = {"granite-unusual", "bloom", "qwen2-moe", "albert-masked", "mpnet-masked"}
BOUND = 1e-5
ASKED = {"output_hidden_states": True, "output_attentions": True}


class Pair(NamedTuple):
    """A model of transformers, ours from its folder, and the folder."""

    theirs: Any
    ours: Pretrained
    folder: Path

    @property
    def table(self) -> WeightTable:
        """Where the weights are in the file."""
        return FAMILIES[load_json(self.folder / "config.json")["model_type"]].table(self.ours.model.config)


def open_pair(name: str, folder: Path, **settings: Any) -> Pair:
    """The tiny model `name`, written to a folder and opened."""
    return Pair(SAVERS[name](folder, **settings), from_pretrained(folder), folder)


def distance(ours: Any, theirs: Any, chosen: Any = ...) -> float:
    """Largest difference of what is chosen, relative to the largest reference entry where that exceeds 1."""
    our, their = np.asarray(ours)[chosen], np.asarray(theirs)[chosen]
    assert our.shape == their.shape
    return float(np.abs(our - their).max() / max(1.0, np.abs(their).max()))


def assert_close(ours: Any, theirs: Any, chosen: Any = ...) -> None:
    """Equal within the bound."""
    assert distance(ours, theirs, chosen) <= BOUND


def is_drawn(name: str) -> bool:
    """Whether this run opens a model: of further families a third, by the seed DRAW; "all" (make ledger) opens all."""
    seed = os.environ.get("DRAW", "0")
    always = name not in FURTHER_NAMES or name in NEW_FIELDS
    return always or seed == "all" or zlib.crc32(f"{seed} {name}".encode()) % 3 == 0


def marked(names: Iterable[str], slow: Iterable[str] = FURTHER_NAMES) -> list[Any]:
    """The names that are drawn as parameters of a test, some of them for the slow run."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names if is_drawn(name)]


def make_batch(pair: Pair, rng: np.random.Generator, side: str = "right", types: bool = True) -> Batch:
    """Arguments by the names that both know: token ids [3, 9] padded on one side, and what else the model reads.

    types: with token types, where the model has several.
    """
    config, places, lengths = pair.ours.model.config, np.arange(9)[None], np.array([9, 4, 7])[:, None]
    valid = places < lengths if side == "right" else places >= 9 - lengths
    batch = {"input_ids": np.where(valid, rng.integers(3, 45, (3, 9)), PAD), "attention_mask": valid.astype(int)}
    if config.encoder and config.decoder:
        batch["decoder_input_ids"] = rng.integers(3, 45, (3, 5))
    if types and config.encoder and config.encoder.embedding.types:
        batch["token_type_ids"] = rng.integers(0, config.encoder.embedding.types, (3, 9))
    return batch


def make_labels(pair: Pair, rng: np.random.Generator, batch: Batch) -> np.ndarray | None:
    """What the model should say: tokens, -100 where nothing counts, or classes; None where the model has no head."""
    if pair.ours.model.head is None:
        return None
    with torch.no_grad():
        logits = pair.theirs(**as_tensors(batch)).logits
    if logits.ndim == 2:
        return rng.integers(0, logits.shape[-1], 3)
    real = np.ones(logits.shape[:2], bool) if "decoder_input_ids" in batch else batch["attention_mask"] == 1
    return np.where(real & (rng.random(real.shape) < 0.7), rng.integers(3, VOCAB - 8, real.shape), -100)


def as_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch for PyTorch."""
    return {name: torch.tensor(array) for name, array in batch.items()}


def forward_distances(pair: Pair, batch: Batch) -> tuple[float, float, float]:
    """Of logits, hidden states and attention maps, at real tokens."""
    with torch.no_grad():
        expected = pair.theirs(**as_tensors(batch), **ASKED)
    seen, valid = pair.ours(**batch, **ASKED), batch["attention_mask"] == 1
    theirs = expected.last_hidden_state if "last_hidden_state" in expected else expected.logits
    stacks = {"": valid}
    if "decoder_input_ids" in batch:
        stacks = {"encoder_": valid, "decoder_": np.ones(batch["decoder_input_ids"].shape, bool)}
    everywhere = "decoder_input_ids" in batch or theirs.ndim == 2
    states, maps = [], []
    for stack, real in stacks.items():
        states += paired(getattr(seen, f"{stack}hidden_states"), getattr(expected, f"{stack}hidden_states"), real)
        maps += paired(getattr(seen, f"{stack}attentions"), getattr(expected, f"{stack}attentions"), real)
    if seen.cross_attentions is not None:
        maps += paired(seen.cross_attentions, expected.cross_attentions, stacks["decoder_"])
    return distance(seen.logits, theirs, ... if everywhere else valid), max(states), max(maps)


def paired(ours: Any, theirs: Any, real: np.ndarray) -> list[float]:
    """The distances of hidden states [B, T, D] or maps [B, N, T, S] of each layer, of the real tokens [B, T]."""
    assert len(ours) == len(theirs)
    queries = [np.broadcast_to(real[:, None], x.shape[:3]) if x.ndim == 4 else real for x in theirs]
    return [distance(our, their, rows) for our, their, rows in zip(ours, theirs, queries, strict=True)]


def our_loss(model: Transformer, batch: Batch, labels: np.ndarray) -> jax.Array:
    """The mean cross-entropy; a decoder alone predicts the next token."""
    marks = {"inputs_mask": batch["attention_mask"] == 1}
    if "token_type_ids" in batch:
        marks["token_types"] = batch["token_type_ids"]
    logits = model(batch["input_ids"], batch.get("decoder_input_ids"), **marks)
    return cross_entropy(logits[:, :-1], labels[:, 1:]) if model.encoder is None else cross_entropy(logits, labels)


gradient_of = jax.jit(jax.value_and_grad(our_loss))  # compiled once for all that is asked of a pair


def in_our_places(pair: Pair, arrays: Batch) -> Transformer:
    """Their arrays, by the names in memory, where our parameters are; NaN where there is none, as for a buffer."""
    on_disk = revert_weight_conversion(pair.theirs, {name: torch.tensor(array) for name, array in arrays.items()})
    arrays = {name: tensor.numpy() for name, tensor in on_disk.items()}
    unknown = {name: np.full(tensor.shape, np.nan, "f4") for name, tensor in read_tensors(pair.folder).items()}
    return place(pair.ours.model.config, named(unknown, pair.table) | named(arrays, pair.table), pair.table)


def gradient_distance(pair: Pair, batch: Batch, labels: np.ndarray) -> float:
    """Of the gradient of each parameter, relative to its largest entry; of the loss too, if that is more.

    Theirs are in float64: where the terms of an entry cancel, their float32 ones are as far from these as ours.
    """
    reference, softmax = deepcopy(pair.theirs).double(), torch.nn.functional.softmax
    # Some ask for a softmax in float32, where the least float64, which hides padding, would be -inf.
    with mock.patch("torch.nn.functional.softmax", lambda scores, dim, **_: softmax(scores, dim)):
        expected = reference(**as_tensors(batch), labels=torch.tensor(labels)).loss
    expected.backward()
    loss, ours = gradient_of(pair.ours.model, batch, labels)
    known = {name: parameter.grad for name, parameter in reference.named_parameters(remove_duplicate=False)}
    theirs = in_our_places(pair, {name: grad.numpy() for name, grad in known.items() if grad is not None})
    found, unknown = [distance(loss, expected.detach())], 0
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if np.isnan(their).all():
            unknown += 1
        else:  # nothing is smaller than 1e-2: the gradient of most key biases is zero, because softmax ignores a shift
            found.append(float(np.abs(our - their).max() / max(np.abs(their).max(), 1e-2)))
    buffers = dict(pair.theirs.named_buffers()).keys() & read_tensors(pair.folder).keys()
    assert unknown == len(buffers)
    return max(found)


SETTINGS = {"eps": 1e-5, "weight_decay": 0.01}
OPTIMIZER = optax.adamw(1e-3, **SETTINGS)


@jax.jit
def move(gradient: jax.Array, state: Any, parameters: jax.Array) -> tuple[jax.Array, optax.OptState]:
    """A step of AdamW."""
    updates, state = OPTIMIZER.update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state


def in_a_row(model: Transformer) -> np.ndarray:
    """All its numbers in one array, with room behind them: models of nearly one size share the compiled `move`."""
    row = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])
    return np.pad(row, (0, -len(row) % 2**14))


def adamw_distance(pair: Pair, batch: Batch, labels: np.ndarray, steps: int = 3) -> float:
    """Of all parameters after a few steps of AdamW. Changes their model. What is a buffer there, is not moved here."""
    theirs = torch.optim.AdamW(pair.theirs.parameters(), lr=1e-3, **SETTINGS)

    def their_parameters() -> Transformer:
        known = pair.theirs.named_parameters(remove_duplicate=False)
        return in_our_places(pair, {name: parameter.detach().numpy() for name, parameter in known})

    leaves, structure = jax.tree.flatten(pair.ours.model)
    ends = np.cumsum([leaf.size for leaf in leaves])
    row, trained = in_a_row(pair.ours.model), ~np.isnan(in_a_row(their_parameters()))
    state = OPTIMIZER.init(row)

    def in_place(row: np.ndarray) -> Transformer:
        parts = np.split(row, ends)[:-1]
        return structure.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])

    for _ in range(steps):
        theirs.zero_grad()
        pair.theirs(**as_tensors(batch), labels=torch.tensor(labels)).loss.backward()
        theirs.step()
        moved, state = move(in_a_row(gradient_of(in_place(row), batch, labels)[1]), state, row)
        row = np.where(trained, moved, row)
    pairs = zip(jax.tree.leaves(in_place(row)), jax.tree.leaves(their_parameters()), strict=True)
    return max(distance(ours, theirs) for ours, theirs in pairs if not np.isnan(theirs).all())


def assert_saved_copy_is_the_same(pair: Pair, folder: Path) -> Pretrained:
    """Bit for bit in every tensor, and again when a folder is written over; returns the copy."""
    save_pretrained(pair.ours, folder)
    before, after = (read_tensors(place) for place in (pair.folder, folder))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    again = from_pretrained(folder)
    save_pretrained(again, folder)
    assert again.generation == pair.ours.generation
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    return again
