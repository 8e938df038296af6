"""Fine-tune an encoder on texts with labels: a loop of one's own, with optax, in 25 lines.

python examples/finetune_classifier.py my-bert reviews.tsv my-classifier
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import jaxformer
from jaxformer.data.rows import read_labelled
from jaxformer.pretrained import with_classifier


def main(folder: str, data: str, output: str, steps: int = 200, batch_size: int = 16) -> None:
    """Train on the lines "text TAB label" of a file, and save a folder that transformers opens."""
    texts, names = zip(*read_labelled(Path(data)), strict=True)
    labels = sorted(set(names))
    lm, _ = with_classifier(jaxformer.from_pretrained(folder, dtype="float32"), labels, seed=0)
    targets = np.array([labels.index(name) for name in names])
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 5e-4, steps // 10, steps))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(model, state, batch, targets, key):
        def loss(model):
            logits = model(batch["input_ids"], inputs_mask=batch["attention_mask"], dropout_key=key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, value

    model, rng = lm.model, np.random.default_rng(0)
    state = optimizer.init(model)
    for number in range(steps):
        chosen = rng.integers(0, len(texts), batch_size)
        # Lengths are rounded up to multiples of 32, so that few programs are compiled.
        batch = lm.encode([texts[row] for row in chosen], multiple_of=32)
        model, state, loss = step(model, state, batch, targets[chosen], jax.random.key(number))
        if number % 20 == 0:
            print(f"step {number}: loss {loss:.4f}")

    lm = dataclasses.replace(lm, model=model)
    jaxformer.save_pretrained(lm, output)
    print(f"{texts[0]!r} is {lm.classify(texts[0])}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
