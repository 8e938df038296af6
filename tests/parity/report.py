"""Measure the distances to PyTorch and Hugging Face that the tests bound; `make parity` writes docs/parity.md."""

import importlib.metadata
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hf_models import MODELS, save_model
from test_hf_generate import draw_settings
from test_torch_transformer import SHAPES, adamw_steps, make_batch, our_logits, our_loss, torch_logits, torch_loss
from torch_reference import (
    TorchTransformer,
    flat,
    gradients_of,
    our_config,
    parameters_of,
    with_parameters,
)

from jaxformer import dot_product_attention, generate
from jaxformer.pretrained import load

GENERATIONS = 100


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
        return (dot_product_attention(*qkv, causal=True) * arrays[3]).sum()

    gradients = jax.grad(score, argnums=(0, 1, 2))(*map(jnp.asarray, arrays[:3]))
    output = distance(
        dot_product_attention(*map(jnp.asarray, arrays[:3]), causal=True), expected.detach().transpose(1, 2)
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


def seq2seq_distances(name: str) -> tuple[float, float]:
    """Logits and attention maps of a tiny Marian or BART against transformers."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference = save_model(name, Path(folder))
        model = load(folder).model
        source, target = rng.integers(3, 45, (3, 7)), rng.integers(3, 45, (3, 5))
        theirs = reference(torch.tensor(source), decoder_input_ids=torch.tensor(target), output_attentions=True)
        ours = model.observe(jnp.asarray(source), jnp.asarray(target))
        maps = zip(ours.decoder.cross_attentions, theirs.cross_attentions, strict=True)
        return distance(ours.logits, theirs.logits), max(distance(a, b) for a, b in maps)


def equal_generations(name: str) -> int:
    """How many of the calls drawn by seed give the very tokens of transformers."""
    rng, equal = np.random.default_rng(3), 0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference = save_model(name, Path(folder))
        model, base = load(folder)
        for _ in range(GENERATIONS):
            settings, source = draw_settings(rng), rng.integers(3, 45, (3, 6))
            theirs = reference.generate(torch.tensor(source), do_sample=False, **settings).numpy()
            settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
            equal += np.array_equal(generate(model, source, base, **settings).sequences, theirs)
    return equal


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
    for name in MODELS:
        logits, maps = seq2seq_distances(name)
        print(f"| transformers, tiny {name} | logits | {logits:.1e} | 1e-5 |")
        print(f"| | cross-attention maps | {maps:.1e} | 1e-5 |")
    for name in ("marian", "bart"):
        equal = equal_generations(name)
        print(
            f"| `generate()`, tiny {name} | calls with identical tokens | {equal} of {GENERATIONS} | all |", flush=True
        )


if __name__ == "__main__":
    main()
