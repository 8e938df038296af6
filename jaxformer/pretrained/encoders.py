"""What models tell about texts: vectors and filled masks by encoders, classes by whatever has a classifier."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxformer.errors import InputError
from jaxformer.generation.arrays import pad
from jaxformer.generation.compiling import compiled
from jaxformer.layers import Classifier, Head
from jaxformer.model import Transformer
from jaxformer.pretrained import tokens
from jaxformer.schema import is_integer

Pooling = Literal["mean", "cls"]
Fillings = list[tuple[str, float]]
ROUND = 16  # lengths are rounded up to a multiple of it, so that few programs are compiled
BATCH = 32  # texts that are read together
MASK = "[MASK]"  # how people write a gap, whatever the tokenizer calls it
MASKS = (MASK, "<mask>")


def rows_of(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    name: Callable[[int], str] = "text {}".format,
    advice: str = "shorten it, or give truncate=True",
) -> list[list[int]]:
    """Return the token ids of texts as an encoder reads them, or a decoder with a classifier.

    Args:
        model: The model.
        tokenizer: Its tokenizer. None: there is none.
        texts: The texts.
        truncate: Whether longer texts than it has positions are cut.
        name: Says of a text's place, from 0 on, what to call it in messages.
        advice: What to do about a text that is too long, for messages.

    Raises:
        InputError: The model or a text does not allow it.
    """
    if model.decoder is not None and not isinstance(model.head, Classifier):
        raise InputError("an encoder-only model is needed, such as BERT: this one has a decoder")
    if tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read texts with")
    limit = longest_input(model)
    ids = tokens.encode(tokenizer, texts, limit=limit if truncate else None)
    for place, row in enumerate(ids):
        if not row:
            raise InputError(f"{name(place)} has no token that the tokenizer knows")
        if limit is not None and len(row) > limit:
            raise InputError(f"{name(place)} has {len(row)} tokens, more than {limit}: {advice}")
    return ids


def longest_input(model: Transformer) -> int | None:
    """Return the most tokens that a model without the other stack can read. None: any number."""
    return model.max_length if model.encoder is None else model.max_source_length


def batches(
    rows: Sequence[Sequence[int]], size: int, limit: int | None
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield places of texts, their ids [size, S] and a mask of real tokens; the longest first, so that it fits.

    Rows without a text repeat the first one.

    Args:
        rows: Token ids of texts.
        size: Rows of a batch.
        limit: The most tokens of a text. None: any number.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        chosen = [rows[place] for place in places] + [rows[places[0]]] * (size - len(places))
        ids, valid = pad(chosen, multiple_of=ROUND)
        yield places, ids[:, :limit], valid[:, :limit]


def embed(
    model: Transformer,
    rows: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    normalize: bool = False,
    size: int = BATCH,
    done: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """Return a vector for each text, float32 [texts, D].

    Args:
        model: The encoder.
        rows: Token ids of texts.
        pooling: "mean" of the last states of a text's tokens, or "cls", the state of the first one.
        normalize: Whether vectors have length 1.
        size: Texts that are read together.
        done: Receives the number of texts of each batch when it is done.
    """
    if pooling not in ("mean", "cls"):
        raise InputError(f'pooling must be "mean" or "cls", not {pooling!r}')
    vectors = np.zeros((len(rows), model.config.dim), np.float32)
    for places, ids, valid in batches(rows, min(size, len(rows)), model.max_source_length):
        vectors[places] = pooled(model, ids, valid, pooling=pooling)[: len(places)]
        done(len(places))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


@compiled(few_rows=False)
def pooled(model: Transformer, ids: jax.Array, valid: jax.Array, *, pooling: Pooling) -> jax.Array:
    """Return the vectors [B, D] of texts [B, S]."""
    states = model.encode(ids, mask=valid)
    if pooling == "cls":
        return states[:, 0]
    return jnp.where(valid[..., None], states, 0).sum(axis=1) / valid.sum(axis=1, keepdims=True)


def classify(model: Transformer, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the probabilities of the classes of each text, float32 [texts, classes].

    Args:
        model: An encoder or a decoder with a classifier.
        rows: Token ids of texts.
    """
    found = []
    for places, ids, valid in batches(rows, min(BATCH, len(rows)), longest_input(model)):
        found += zip(places, np.asarray(probabilities(model, ids, valid)), strict=False)
    return np.stack([row for _, row in sorted(found, key=lambda each: each[0])])


@compiled(few_rows=False)
def probabilities(model: Transformer, ids: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the probabilities of the classes [B, classes] of texts [B, S]."""
    return jax.nn.softmax(model(ids, inputs_mask=valid))


def mask_token(tokenizer: tokenizers.Tokenizer | None) -> tuple[str, int]:
    """Return the name and the number of a tokenizer's mask token. Raises InputError where there is none."""
    for name in MASKS:
        token = None if tokenizer is None else tokenizer.token_to_id(name)
        if token is not None:
            return name, token
    raise InputError(f"the tokenizer of the checkpoint has no token {' or '.join(MASKS)} to find words for")


def fill_mask(
    model: Transformer, tokenizer: tokenizers.Tokenizer | None, texts: Sequence[str], top_k: int
) -> list[list[Fillings]]:
    """Return for each mask of each text the tokens that may stand there, and their probabilities, best first.

    Args:
        model: An encoder with a head for masked tokens.
        tokenizer: Its tokenizer.
        texts: The texts.
        top_k: How many tokens for each mask.

    Raises:
        InputError: The model has no such head, or a text has no mask or is too long.
    """
    if not isinstance(model.head, Head):
        raise InputError("the model has no head for masked tokens (ForMaskedLM)")
    if not is_integer(top_k) or top_k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, not {top_k!r}")
    name, mask = mask_token(tokenizer)
    assert tokenizer is not None, "it has a mask token"
    rows = rows_of(model, tokenizer, [text.replace(MASK, name) for text in texts], advice="shorten it")
    for number, row in enumerate(rows):
        if mask not in row:
            raise InputError(f"text {number} has no {name} to fill: write it where a token is missing")
    found: list[list[Fillings]] = [[] for _ in rows]
    for places, ids, valid in batches(rows, min(BATCH, len(rows)), model.max_source_length):
        chosen, scores = np.asarray(ids == mask), token_shares(model, ids, valid)
        for row, place in enumerate(places):
            for slot in np.flatnonzero(chosen[row]):
                shares = np.asarray(scores[row, slot])
                best = np.argsort(-shares, kind="stable")[:top_k]
                texts_of = [tokens.decode(tokenizer, [int(each)], skip_special_tokens=False) for each in best]
                found[place].append(list(zip(texts_of, map(float, shares[best]), strict=True)))
    return found


@compiled(few_rows=False)
def token_shares(model: Transformer, ids: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the probabilities of the tokens at every place, [B, S, V]."""
    return jax.nn.softmax(model(ids, inputs_mask=valid))
