"""Measure the distances to PyTorch and Hugging Face that the tests bound; `make parity` writes docs/parity.md."""

import importlib.metadata
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from drawn import differences, modes
from hf_encoders import ENCODERS
from hf_models import DECODERS, MODELS
from hf_pairs import (
    SAVERS,
    adamw_distance,
    forward_distances,
    gradient_distance,
    make_labels,
    open_pair,
)
from hf_pairs import make_batch as make_family_batch
from test_torch_transformer import SHAPES, adamw_steps, make_batch, our_logits, our_loss, torch_logits, torch_loss
from torch_reference import (
    TorchTransformer,
    flat,
    gradients_of,
    our_config,
    parameters_of,
    with_parameters,
)

from jaxformer import AttentionMask, dot_product_attention

GENERATIONS = 600
LEDGER = """
## Families of transformers

Tiny random models, written to a folder by transformers and opened by `from_pretrained`, in several configurations so
that no setting keeps its default; encoders bare, with a head for tokens and with one for classes. Largest differences
at real tokens of padded batches: logits, hidden states, attention maps; the gradient of every parameter, relative to
its largest entry (at least 1e-2), from the one that transformers gives in float64; all parameters after three steps of
AdamW. The bound of all is 1e-5, and `make test-slow` holds them to it. Processors round differently: figures of another
one differ in their digits.
"""
BEYOND = """
## Beyond these

- `generate()`: `make test-slow` compares 444 calls recorded from transformers and 2,000 drawn ones, over all families
  with a language-model head. Tokens, scores and beams are the same except for ties that rounding decides (in one of
  them a router chose between groups of experts 5e-7 apart). `make calls CALLS=50000` draws as many more as you like.
- Attention: all 93 cases of the ONNX operator `Attention`.
- Beam search: brute force over all sequences of a vocabulary of 5 tokens, and a plain-Python reference
  (`tests/generation/beam_oracle.py`).
- Caches: every split of an input into chunks and single steps equals the full forward.
- Your own checkpoint: `python -m jaxformer verify FOLDER`, see [checkpoints](guides/checkpoints.md).
"""


def distance(ours: object, theirs: object) -> float:
    """Largest difference, relative to the largest reference entry where that exceeds 1."""
    reference = np.asarray(theirs)
    return float(np.abs(np.asarray(ours) - reference).max() / max(1.0, np.abs(reference).max()))


def attention_distances() -> tuple[float, float]:
    """Output and gradients against scaled_dot_product_attention: 2 rows, 509 queries, 8 heads of 64, causal."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 509, 8, 64)).astype(np.float32) for _ in range(4)]
    tensors = [torch.tensor(array).transpose(1, 2).requires_grad_() for array in arrays[:3]]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
    expected.backward(torch.tensor(arrays[3]).transpose(1, 2))

    def score(*qkv: jax.Array) -> jax.Array:
        return (dot_product_attention(*qkv, mask=AttentionMask(causal=True)) * arrays[3]).sum()

    gradients = jax.grad(score, argnums=(0, 1, 2))(*map(jnp.asarray, arrays[:3]))
    output = distance(
        dot_product_attention(*map(jnp.asarray, arrays[:3]), mask=AttentionMask(causal=True)),
        expected.detach().transpose(1, 2),
    )
    backward = [distance(a, t.grad.transpose(1, 2)) for a, t in zip(gradients, tensors, strict=True)]
    return output, max(backward)


def transformer_distances() -> tuple[float, float, float]:
    """Logits, gradients (relative to the largest entry of each tensor) and AdamW against torch.nn.Transformer."""
    found = []
    for shape in SHAPES:
        torch.manual_seed(2)
        reference, batch = TorchTransformer(*shape), make_batch()
        model = with_parameters(our_config(*shape), parameters_of(reference))
        real = batch["target_valid"]
        logits = distance(our_logits(model, batch)[real], torch_logits(reference, batch).detach().numpy()[real])
        torch_loss(reference, batch).backward()
        theirs, ours = gradients_of(reference), flat(jax.grad(our_loss)(model, batch))
        names = [name for name in theirs if not name.endswith("key.bias")]  # those are zero
        gradients = max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in names)
        model = adamw_steps(reference, model, batch, 3)
        after = parameters_of(reference)
        found.append((logits, gradients, max(np.abs(flat(model)[name] - after[name]).max() for name in after)))
    return tuple(float(max(column)) for column in zip(*found, strict=True))


class Distances(NamedTuple):
    """What a family was measured in; NaN where there is nothing to measure."""

    logits: float
    states: float
    maps: float
    gradients: float
    steps: float


def family_distances(name: str) -> Distances:
    """Of a tiny model from transformers, padded on the right; gradients and AdamW with smaller weights (see tests)."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = open_pair(name, Path(folder))
        forward = forward_distances(pair, make_family_batch(pair, rng))
    with tempfile.TemporaryDirectory() as folder:
        pair = open_pair(name, Path(folder), std=0.2)
        batch = make_family_batch(pair, rng)
        labels = make_labels(pair, rng, batch)
        if labels is None:
            return Distances(*forward, np.nan, np.nan)
        found = Distances(*forward, gradient_distance(pair, batch, labels), adamw_distance(pair, batch, labels))
    jax.clear_caches()  # what was compiled for one model is of no use to the next
    return found


def families() -> dict[str, list[str]]:
    """The configurations of each family."""
    found: dict[str, list[str]] = {}
    for name in SAVERS:
        config = {**DECODERS, **MODELS}.get(name) or ENCODERS[name.rpartition("-")[0]]
        found.setdefault(config[0].model_type, []).append(name)
    return dict(sorted(found.items()))


def equal_generations() -> tuple[int, int, int]:
    """How many calls drawn by seed give the same as transformers, differ where rounding decides, or differ."""
    every = modes()
    found = [
        each
        for index, mode in enumerate(every)
        for each in differences(mode, GENERATIONS // len(every), np.random.default_rng([1, index]))
    ]
    ties = sum(each.startswith("tie") for each in found)
    return found.count(""), ties, len(found) - found.count("") - ties


def main() -> None:
    """Print the table."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "transformers")
    )
    print(f"# Parity\n\nFloat32 on the CPU, made by `make parity` with {versions}.")
    print("Differences are the largest ones, relative to the largest reference entry where that exceeds 1.\n")
    print("| against | what | largest difference | bound |\n|---|---|---|---|")
    output, gradients = attention_distances()
    print(f"| `scaled_dot_product_attention`, 509 queries | output | {output:.1e} | 1e-5 |")
    print(f"| | gradients | {gradients:.1e} | 1e-5 |")
    logits, gradients, steps = transformer_distances()
    print(f"| `torch.nn.Transformer`, pre and post norm, ReLU and GELU | logits | {logits:.1e} | 1e-5 |")
    print(f"| | gradient of every parameter, relative to its largest entry | {gradients:.1e} | 1e-5 |")
    print(f"| | parameters after three steps of AdamW | {steps:.1e} | 1e-5 |")
    calls = ", ".join(map(str, equal_generations()))
    print(f"| `generate()`, all families | drawn calls: equal, ties, different | {calls} | 0 different |", flush=True)
    print(LEDGER)
    print(f"| family | configurations | {' | '.join(Distances._fields)} |")
    print("|---" * (2 + len(Distances._fields)) + "|")
    for family, names in families().items():
        print(ledger_row(family, [family_distances(name) for name in names]), flush=True)
    print(BEYOND, end="")


def ledger_row(family: str, found: list[Distances]) -> str:
    """A line of the families' table: the largest of all configurations."""
    largest = [f"{value:.1e}" for value in np.nanmax(np.array(found), axis=0)]
    return f"| {family} | {len(found)} | {' | '.join(largest)} |"


if __name__ == "__main__":
    main()
