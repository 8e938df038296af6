"""Logits processors of one's own, in compiled loops: rhyme schemes, watermarks, whatever changes the next token.

python examples/own_processor.py my-gpt2 "The meaning of life is"
"""

import itertools
import sys

import jax
import jax.numpy as jnp

import jaxformer


@jaxformer.logits_processor
class Watermark:
    """Prefer half of the vocabulary, another half after every token, as in Kirchenbauer et al. 2023, section 3.

    Attributes:
        key: Seed of the halves; a field is traced, so another key compiles nothing.
        bias: What is added to the scores of the preferred half.
    """

    key: int
    bias: float

    def __call__(self, scores: jax.Array, context) -> jax.Array:
        """Return the scores [R, V]; `context.tokens` [R, slots] has the tokens so far, `context.length` of them."""
        previous = jax.lax.dynamic_index_in_dim(context.tokens, context.length - 1, axis=1, keepdims=False)  # [R]
        return scores + self.bias * jax.vmap(lambda token: green(self.key, token, scores.shape[1]))(previous)


def green(key: int, previous: jax.Array, vocabulary: int) -> jax.Array:
    """Return which tokens are preferred after another one, boolean [V]."""
    return jax.random.bernoulli(jax.random.fold_in(jax.random.key(key), previous), 0.5, (vocabulary,))


def share(key: int, ids: list[int], vocabulary: int) -> float:
    """Return the share of tokens that are preferred after the one before them: a half where nothing was marked."""
    marks = [green(key, jnp.int32(before), vocabulary)[token] for before, token in itertools.pairwise(ids)]
    return float(jnp.mean(jnp.array(marks)))


def main(folder: str, prompt: str) -> None:
    """Generate with and without the watermark, and tell them apart."""
    lm = jaxformer.from_pretrained(folder)
    batch, vocabulary = lm.encode(prompt), lm.model.vocab_sizes[1]
    start = batch["input_ids"].shape[1]
    for bias in (0.0, 5.0):
        marked = Watermark(key=7, bias=bias)
        found = lm.generate(**batch, logits_processors=(marked,), max_new_tokens=24, do_sample=True, seed=0)
        ids = found.sequences[0, start - 1 :].tolist()
        print(f"bias {bias}: {share(7, ids, vocabulary):.0%} preferred: {lm.decode(ids)!r}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
