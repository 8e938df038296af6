"""A model of transformers beside ours from its folder, and what equality means."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from jaxformer import Transformer, cross_entropy
from jaxformer.pretrained import FAMILIES, Pretrained, from_pretrained, save_pretrained
from jaxformer.pretrained.files import read_json, read_tensors
from jaxformer.pretrained.weights import build, named


class Pair(NamedTuple):
    """A model of transformers, ours from its folder, and the folder."""

    theirs: Any
    ours: Pretrained
    folder: Path


def assert_close(ours: Any, theirs: Any, chosen: Any = ...) -> None:
    """Equal to 1e-5 of the largest reference entry, or of 1."""
    our, their = np.asarray(ours)[chosen], np.asarray(theirs)[chosen]
    assert our.shape == their.shape
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * max(1, np.abs(their).max()))


def assert_traces_close(states: Any, maps: Any, their_states: Any, their_maps: Any, valid: np.ndarray) -> None:
    """Hidden states [B, T, D] and attention maps [B, N, T, S] of the queries that are real."""
    assert (len(states), len(maps)) == (len(their_states), len(their_maps))
    for ours, theirs in zip(states, their_states, strict=True):
        assert_close(ours, theirs, valid)
    for ours, theirs in zip(maps, their_maps, strict=True):
        assert_close(ours, theirs, np.broadcast_to(valid[:, None], theirs.shape[:3]))


def assert_gradients_close(pair: Pair, inputs: dict[str, np.ndarray], labels: np.ndarray, shift: bool = False) -> None:
    """The loss and the gradient of every parameter. Theirs, read as if they were weights, stand where ours do.

    inputs: arguments by the names that both know. labels [B, T], -100 where nothing counts, or [B] classes. shift: a
    position predicts the next label.
    """
    pair.theirs.zero_grad()
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    expected = pair.theirs(**tensors, labels=torch.tensor(labels)).loss
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters() if parameter.requires_grad}
    known = {name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None}
    model, kind = pair.ours.model, read_json(pair.folder / "config.json")["model_type"]
    table = FAMILIES[kind].table(model.config)
    marks = {"inputs_valid": inputs["attention_mask"].astype(bool)}
    if "token_type_ids" in inputs:
        marks["token_types"] = inputs["token_type_ids"]
    arguments = [inputs[name] for name in ("input_ids", "decoder_input_ids") if name in inputs]

    def loss_of(model: Transformer) -> jax.Array:
        logits = model(*arguments, **marks)
        return cross_entropy(logits[:, :-1], labels[:, 1:]) if shift else cross_entropy(logits, labels)

    loss, ours = jax.jit(jax.value_and_grad(loss_of))(model)
    assert_close(loss, expected.detach())
    if kind == "gpt_neox":  # whose head has another name in memory than in files
        known = {name.replace("lm_head.", "embed_out."): gradient for name, gradient in known.items()}
    # What they do not train, such as a bias that is a buffer, has no gradient to compare.
    unknown = {name: np.full(tensor.shape, np.nan, "f4") for name, tensor in read_tensors(pair.folder).items()}
    theirs = build(model.config, named(unknown, table) | named(known, table), table)
    compared = 0
    for (path, our), their in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        if np.isnan(their).all():
            continue
        compared += 1
        # The gradient of a key bias is zero, because the softmax ignores a shift: both have rounding errors there.
        bound = max(1e-7, 1e-5 * np.abs(their).max())
        assert np.abs(our - their).max() <= bound, jax.tree_util.keystr(path)
    assert compared >= len(jax.tree.leaves(ours)) - 1


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
