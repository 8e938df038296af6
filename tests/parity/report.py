"""Measure the distances to PyTorch and Hugging Face that the tests bound; `make parity` writes docs/parity.md."""

import importlib.metadata
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hf_models import DECODERS, MODELS, save_decoder, save_model
from test_hf_decoders import Pair, batch, losses_and_gradients
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
from jaxformer.pretrained import from_pretrained

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
        model = from_pretrained(folder).model
        source, target = rng.integers(3, 45, (3, 7)), rng.integers(3, 45, (3, 5))
        theirs = reference(torch.tensor(source), decoder_input_ids=torch.tensor(target), output_attentions=True)
        ours = model.observe(jnp.asarray(source), jnp.asarray(target))
        maps = zip(ours.decoder.cross_attentions, theirs.cross_attentions, strict=True)
        return distance(ours.logits, theirs.logits), max(distance(a, b) for a, b in maps)


def decoder_distances(name: str) -> tuple[float, float, float, float]:
    """Logits, hidden states, attention maps and gradients (relative to each tensor's largest entry) of a tiny decoder.

    Prompts are padded on the right; real tokens are compared.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(save_decoder(name, Path(folder)), from_pretrained(folder), Path(folder))
        tokens, valid = batch(rng, "right")
        with torch.no_grad():
            theirs = pair.theirs(
                torch.tensor(tokens),
                attention_mask=torch.tensor(valid),
                output_hidden_states=True,
                output_attentions=True,
            )
        ours = pair.ours.model.observe(jnp.asarray(tokens), inputs_valid=jnp.asarray(valid))
        states = zip(ours.decoder.hidden_states, theirs.hidden_states, strict=True)
        maps = zip(ours.decoder.attentions, theirs.attentions, strict=True)
        rows = np.broadcast_to(valid[:, None], ours.decoder.attentions[0].shape[:3])
        (_, our_gradients), (_, their_gradients) = losses_and_gradients(pair, rng)
    leaves = zip(jax.tree.leaves(our_gradients), jax.tree.leaves(their_gradients), strict=True)
    # The gradient of a key bias is zero: there is nothing to be relative to.
    gradients = [np.abs(a - b).max() / np.abs(b).max() for a, b in leaves if np.abs(b).max() > 1e-6]
    return (
        distance(ours.logits[valid], theirs.logits[valid]),
        max(distance(a[valid], b[valid]) for a, b in states),
        max(distance(a[rows], b[rows]) for a, b in maps),
        float(max(gradients)),
    )


def equal_generations(name: str) -> int:
    """How many of the calls drawn by seed give the very tokens of transformers."""
    rng, equal = np.random.default_rng(3), 0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference = save_model(name, Path(folder))
        lm = from_pretrained(folder)
        model, base = lm.model, lm.generation
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
    families = {
        name: [other for other in DECODERS if other.split("-")[0] == name] for name in DECODERS if "-" not in name
    }
    for family, names in families.items():
        found = np.max([decoder_distances(name) for name in names], axis=0)
        print(f"| transformers, tiny {family}, {len(names)} configurations | logits | {found[0]:.1e} | 1e-5 |")
        for what, value in zip(("hidden states", "attention maps", "gradients"), found[1:], strict=True):
            print(f"| | {what} | {value:.1e} | 1e-5 |", flush=True)
    for name in ("marian", "bart"):
        equal = equal_generations(name)
        print(
            f"| `generate()`, tiny {name} | calls with identical tokens | {equal} of {GENERATIONS} | all |", flush=True
        )


if __name__ == "__main__":
    main()
