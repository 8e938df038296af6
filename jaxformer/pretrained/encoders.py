"""What models tell about texts: vectors, filled masks, and the logits of classes of texts and of tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxformer.errors import InputError
from jaxformer.generation.arrays import pad
from jaxformer.generation.compiling import compiled
from jaxformer.layers import Head, last_of, mean_of
from jaxformer.model import Transformer
from jaxformer.pretrained import tokens
from jaxformer.pretrained.arguments import lacks_end
from jaxformer.pretrained.tokens import Text
from jaxformer.schema import is_integer, shown

Pooling = Literal["mean", "cls", "max", "last"]
POOLINGS = get_args(Pooling)
Fillings = list[tuple[str, float]]
ROUND = 16  # lengths are rounded up to a multiple of it, so that few programs are compiled
BATCH = 32  # texts that are read together
MASK = "[MASK]"  # how people write a gap, whatever the tokenizer calls it
MASKS = (MASK, "<mask>")


def rows_of(
    model: Transformer, tokenizer: tokenizers.Tokenizer | None, texts: Sequence[Text], **settings: Any
) -> list[list[int]]:
    """Return the token ids of texts as a model reads them. Arguments and errors as of `encodings_of`."""
    return [encoding.ids for encoding in encodings_of(model, tokenizer, texts, **settings)]


def encodings_of(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None,
    texts: Sequence[Text],
    *,
    truncate: bool = False,
    limit: int | None = None,
    name: Callable[[int], str] = "text {}".format,
    advice: str = "shorten it, or give truncate=True",
) -> list[tokenizers.Encoding]:
    """Return texts, or pairs of texts, as tokens that a model reads.

    Args:
        model: The model.
        tokenizer: Its tokenizer. None: there is none.
        texts: The texts.
        truncate: Whether longer texts than it has positions are cut.
        limit: The most tokens of a text, where these are fewer than the positions of the model.
        name: Says of a text's place, from 0 on, what to call it in messages.
        advice: What to do about a text that is too long, for messages.

    Raises:
        InputError: There is no tokenizer, or a text does not allow it.
    """
    if tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read texts with")
    limit = min(filter(None, (limit, longest_input(model))), default=None)
    found = tokens.encodings(tokenizer, texts, limit=limit if truncate else None)
    for place, encoding in enumerate(found):
        if not encoding.ids:
            raise InputError(f"{name(place)} has no token that the tokenizer knows")
        if limit is not None and len(encoding.ids) > limit:
            raise InputError(f"{name(place)} has {len(encoding.ids)} tokens, more than {limit}: {advice}")
    return found


def longest_input(model: Transformer) -> int | None:
    """Return the most tokens of a text that a model can read. None: any number."""
    limits = [model.max_length if model.encoder is None else model.max_source_length]
    if model.config.targets_from is not None:  # whose decoder reads them as well
        limits.append(model.max_length)
    return min(filter(None, limits), default=None)


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
        model: The encoder, or a decoder for "last".
        rows: Token ids of texts.
        pooling: "mean" of the last states of a text's tokens, the largest entries of them, "max", or the state of the
            first token, "cls", or of the "last".
        normalize: Whether vectors have length 1.
        size: Texts that are read together.
        done: Receives the number of texts of each batch when it is done.

    Raises:
        InputError: The pooling is not known, or the model is no encoder and would not see all of a text.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling must be {', '.join(POOLINGS)}, not {shown(pooling)}")
    if model.encoder is not None and model.decoder is not None:
        raise InputError("an encoder-only model is needed, such as BERT: this one has a decoder")
    if model.encoder is None and pooling == "cls":
        raise InputError('the first token of a decoder sees no other: give pooling="last", or "mean"')
    vectors = np.zeros((len(rows), model.config.dim), np.float32)
    for places, ids, valid in batches(rows, min(size, len(rows)), longest_input(model)):
        vectors[places] = pooled(model, ids, valid, pooling=pooling)[: len(places)]
        done(len(places))
    if not normalize:
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@compiled(few_rows=False)
def pooled(model: Transformer, ids: jax.Array, valid: jax.Array, *, pooling: Pooling) -> jax.Array:
    """Return the vectors [B, D] of texts [B, S]."""
    if model.encoder is not None:
        states = model.encode(ids, mask=valid)
    else:
        states, _ = model.extend(ids, model.init_cache(*ids.shape), mask=valid)
    match pooling:
        case "cls":
            return states[:, 0]
        case "last":
            return last_of(states, valid)
        case "max":
            return jnp.where(valid[..., None], states, -jnp.inf).max(axis=1)
        case _:
            return mean_of(states, valid)


def logits_of(
    model: Transformer,
    encodings: Sequence[tokenizers.Encoding],
    *,
    types: bool = True,
    name: Callable[[int], str] = "text {}".format,
) -> list[np.ndarray]:
    """Return the logits of each text, float32 [classes], or of its tokens [tokens, classes].

    Args:
        model: A model with a classifier, of texts or of tokens.
        encodings: The texts as tokens.
        types: Whether a model that knows types of tokens is told those of the tokenizer.
        name: Says of a text's place, from 0 on, what to call it in messages.

    Raises:
        InputError: A text has not the token that ends it, where the model classifies by its state.
    """
    rows = [encoding.ids for encoding in encodings]
    found: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        if (lacking := lacks_end(model, row)) is not None:
            raise InputError(
                f"{name(place)} has no token {lacking}, which ends a text and which the tokenizer should add"
            )
    for places, ids, valid in batches(rows, min(BATCH, len(rows)), longest_input(model)):
        marks = None
        if types and model.encoder is not None and (model.config.main.embedding.types or 1) > 1:
            marks = np.zeros_like(ids)
            for row, place in enumerate(places):
                marks[row, : len(rows[place])] = encodings[place].type_ids
        logits = np.asarray(classified(model, ids, valid, marks), np.float32)
        for place, each in zip(places, logits, strict=False):
            found[place] = each if each.ndim == 1 else each[: len(rows[place])]
    return [found[place] for place in range(len(rows))]


@compiled(few_rows=False)
def classified(model: Transformer, ids: jax.Array, valid: jax.Array, types: jax.Array | None) -> jax.Array:
    """Return the logits of texts [B, S]: [B, classes] or [B, S, classes]."""
    return model(ids, inputs_mask=valid) if types is None else model(ids, inputs_mask=valid, token_types=types)


def mask_token(tokenizer: tokenizers.Tokenizer | None) -> tuple[str, int]:
    """Return the name and the number of a tokenizer's mask token. Raises InputError where there is none."""
    for name in MASKS:
        token = None if tokenizer is None else tokenizer.token_to_id(name)
        if token is not None:
            return name, token
    raise InputError(f"the tokenizer of the checkpoint has no token {' or '.join(MASKS)} to find words for")


def fill_mask(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None,
    texts: Sequence[str],
    top_k: int,
    name: Callable[[int], str] = "text {}".format,
) -> list[list[Fillings]]:
    """Return for each mask of each text the tokens that may stand there, and their probabilities, best first.

    Args:
        model: An encoder with a head for masked tokens.
        tokenizer: Its tokenizer.
        texts: The texts.
        top_k: How many tokens for each mask.
        name: Says of a text's place, from 0 on, what to call it in messages.

    Raises:
        InputError: The model has no such head, or a text has no mask or is too long.
    """
    if not isinstance(model.head, Head):
        raise InputError("the model has no head for masked tokens (ForMaskedLM)")
    if not is_integer(top_k) or top_k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, not {top_k!r}")
    written, mask = mask_token(tokenizer)
    assert tokenizer is not None, "it has a mask token"
    if model.decoder is not None:
        raise InputError("an encoder-only model is needed, such as BERT: this one has a decoder")
    rows = rows_of(model, tokenizer, [text.replace(MASK, written) for text in texts], name=name, advice="shorten it")
    for number, row in enumerate(rows):
        if mask not in row:
            raise InputError(f"{name(number)} has no {written} to fill: write it where a token is missing")
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
