"""Which keys a query may attend to. Boolean, True = visible; combined with `&`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError

Offset = int | jax.Array
Window = tuple[int | None, int | None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionMask:
    """Keys that each query may attend to, by structure instead of an array [T, S], so that kernels can use it.

    All of these hold together. The default hides nothing.

    Attributes:
        causal: Whether a query sees only keys at or before its position; static.
        window: (left, right): a query sees keys from `left` positions before it to `right` after it, None leaves a side
            open; static.
        offset: Position of the first query, where key j has position j: an integer, a scalar array, or int [B|1].
        key_valid: Boolean [B|1, S], True at real tokens. None: all are.
        segment_ids: Integers [B|1, S], the numbers of the sequences that a row is packed of: a query, whose own number
            is that of the key at its position, sees only keys of the same number. None: a row is one sequence.
        explicit: Boolean [B|1, N|1, T|1, S], for what has no structure. None: nothing.
    """

    causal: bool = field(default=False, metadata={"static": True})
    window: Window | None = field(default=None, metadata={"static": True})
    offset: Offset = 0
    key_valid: jax.Array | None = None
    segment_ids: jax.Array | None = None
    explicit: jax.Array | None = None

    @property
    def bounds(self) -> Window:
        """How far a query sees to the left and to the right; causality is 0 to the right."""
        left, right = self.window or (None, None)
        return left, 0 if self.causal else right

    @property
    def offsets(self) -> jax.Array:
        """Position of the first query of each row, int [B|1]."""
        return jnp.atleast_1d(jnp.asarray(self.offset))

    @property
    def static_offset(self) -> int | None:
        """The offset as an integer; None if it is an array, whose value may not be known."""
        return int(self.offset) if isinstance(self.offset, int | np.integer) else None

    def within(self, window: Window) -> "AttentionMask":
        """Return the mask with a window that is at most `window`."""
        sides = zip(self.window or (None, None), window, strict=True)
        left, right = (smaller(*pair) for pair in sides)
        return dataclasses.replace(self, window=None if left is None and right is None else (left, right))

    def num_visible_keys(self, queries: int, keys: int) -> int:
        """Return how many of the first keys the queries can attend to: all, unless the offset is static.

        Args:
            queries: Number of queries T.
            keys: Number of keys S.
        """
        start = self.static_offset
        return min(start + queries, keys) if self.causal and start is not None else keys

    def prefix(self, keys: int) -> "AttentionMask":
        """Return the mask of the first `keys` keys."""
        key_valid = None if self.key_valid is None else self.key_valid[:, :keys]
        segment_ids = None if self.segment_ids is None else self.segment_ids[:, :keys]
        explicit = None if self.explicit is None else self.explicit[..., :keys]
        return dataclasses.replace(self, key_valid=key_valid, segment_ids=segment_ids, explicit=explicit)

    def materialize(self, queries: int, keys: int) -> jax.Array:
        """Return the mask as an array: boolean [B|1, N|1, T|1, S].

        Args:
            queries: Number of queries T.
            keys: Number of keys S.
        """
        found = self.visible(queries, keys)
        return jnp.ones((1, 1, 1, keys), bool) if found is None else found

    def visible(self, queries: int, keys: int) -> jax.Array | None:
        """Return the mask as `materialize` does, or None if it hides nothing.

        Args:
            queries: Number of queries T.
            keys: Number of keys S.
        """
        visible = None
        if self.explicit is not None:
            visible = as_mask("mask", self.explicit)
            visible = visible[None, None] if visible.ndim == 2 else visible
        if self.key_valid is not None:
            visible = both(visible, as_mask("key_valid", self.key_valid)[:, None, None])
        positions = self.offsets[:, None] + jnp.arange(queries)[None]
        if self.segment_ids is not None:
            visible = both(visible, segment_mask(positions, self.segment_ids, self.segment_ids)[:, None])
        if self.bounds != (None, None):
            visible = both(visible, window_mask(positions, jnp.arange(keys), *self.bounds)[:, None])
        return visible

    def __and__(self, other: "AttentionMask") -> "AttentionMask":
        """Return the mask that shows what both show.

        The offset is that of the mask with a window, causality or segments. Raises InputError where both have one and
        the offsets differ, or cannot be compared, and where both have segments.
        """
        if self.segment_ids is not None and other.segment_ids is not None:
            raise InputError("two masks with segment_ids cannot be combined: give one of them")
        placed = [(mask.bounds, mask.segment_ids is None) != ((None, None), True) for mask in (self, other)]
        bounded = [mask for mask, needs in zip((self, other), placed, strict=True) if needs] or [self]
        if len(bounded) == 2 and not is_same(self.offset, other.offset):
            raise InputError("masks with different offsets cannot be combined: give both the same offset")
        return dataclasses.replace(
            self.within(other.window or (None, None)),
            causal=self.causal or other.causal,
            offset=bounded[0].offset,
            key_valid=both(
                *(None if m.key_valid is None else as_mask("key_valid", m.key_valid) for m in (self, other))
            ),
            segment_ids=self.segment_ids if other.segment_ids is None else other.segment_ids,
            explicit=both(*(None if m.explicit is None else as_mask("mask", m.explicit) for m in (self, other))),
        )


def as_mask(name: str, mask: Any) -> jax.Array:
    """Return a mask as booleans. Integers 0 and 1, as tokenizers give them, are accepted.

    Args:
        name: What to call the mask in messages.
        mask: Array of booleans or integers of any shape.

    Raises:
        InputError: Other types, and, where values are known, other integers.
    """
    array = mask if isinstance(mask, jax.Array) else jnp.asarray(np.asarray(mask))
    if array.dtype == bool:
        return array
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"{name} must be boolean or integers 0 and 1, True = visible, not {array.dtype}")
    if not isinstance(array, jax.core.Tracer) and not bool(((array == 0) | (array == 1)).all()):
        raise InputError(f"{name} must be 1 at real tokens and 0 at padding, but holds other integers")
    return array != 0


def token_mask(name: str, mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Return a mask of tokens as booleans [B, T]; None stays None.

    Args:
        name: What to call the mask in messages.
        mask: Booleans, or integers 0 and 1, [B, T], or [1, T] for all rows.
        shape: (B, T).

    Raises:
        InputError: Another shape or type, or other integers.
    """
    if mask is None:
        return None
    valid = as_mask(name, mask)
    if valid.ndim != 2 or valid.shape[1] != shape[1] or valid.shape[0] not in (1, shape[0]):
        raise InputError(f"{name} must be {list(shape)} as the tokens are, not {list(valid.shape)}")
    return jnp.broadcast_to(valid, shape)


def is_same(one: Offset, other: Offset) -> bool:
    """Return whether two offsets are known to be the same."""
    if one is other:
        return True
    known = not any(isinstance(each, jax.core.Tracer) for each in (one, other))
    return known and np.array_equal(np.asarray(one), np.asarray(other))


def both(one: jax.Array | None, other: jax.Array | None) -> jax.Array | None:
    """Return `one & other`, where None stands for a mask that hides nothing."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two bounds, where None stands for no bound."""
    known = [each for each in (one, other) if each is not None]
    return min(known) if known else None


def count_positions(valid: jax.Array) -> jax.Array:
    """Return the position of each token as the number of real tokens before it: boolean [B, T] -> int [B, T].

    Padding on either side then moves no real token: 0 0 1 1 1 -> 0 0 0 1 2.
    """
    return jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=-1) - 1, 0)


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Return the position of each token within its sequence, int [B, T]: 1 1 1 2 2 0 -> 0 1 2 0 1 0.

    Args:
        segment_ids: Integers [B, T], the same for the tokens of a sequence, which follow each other.
    """
    places = jnp.arange(segment_ids.shape[1])[None]
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def segment_mask(query_positions: jax.Array, query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """Return which keys belong to the sequence of each query. Boolean [B, T, S].

    For the segments 1 1 1 2 2 of queries and keys:
        1 1 1 0 0
        1 1 1 0 0
        1 1 1 0 0
        0 0 0 1 1
        0 0 0 1 1

    Args:
        query_positions: Integers [B|1, T], the places of queries in `query_segments`.
        query_segments: Integers [B|1, P].
        key_segments: Integers [B|1, S].
    """
    rows = max(len(query_positions), len(query_segments))
    segments, places = (jnp.broadcast_to(x, (rows, x.shape[1])) for x in (query_segments, query_positions))
    own = jnp.take_along_axis(segments, places, axis=1, mode="clip")  # [B, T]
    return own[:, :, None] == key_segments[:, None]


def causal_mask(length: int) -> jax.Array:
    """Return which keys each query may see: itself and what came before. Boolean [T, T], True = visible.

    Section 3.2.3: a position may depend only on the known outputs before it. For length 5 (rows are queries):
        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Args:
        length: Number of positions T.

    Raises:
        InputError: The length is negative.
    """
    if length < 0:
        raise InputError(f"the length of a causal mask must not be negative, not {length}")
    positions = jnp.arange(length)
    return window_mask(positions[None], positions, None, 0)[0]


def padding_mask(lengths: jax.Array, length: int) -> jax.Array:
    """Return which positions hold real tokens, from the number of tokens in each row. Boolean [B, S], True = real.

    For lengths [3, 5] and length 5:
        1 1 1 0 0
        1 1 1 1 1

    Every query of a row sees the same keys, so attention takes this as `AttentionMask(key_valid=padding_mask(...))`.
    With `causal=True`, for the first row (rows are queries):
        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 0 0
        1 1 1 0 0

    Written out it is `causal_mask(5)[None, None] & padding_mask(lengths, 5)[:, None, None, :]` [B, 1, T, S].

    Args:
        lengths: Number of tokens of each row, int [B].
        length: Number of positions S.

    Raises:
        InputError: lengths is not an integer vector.
    """
    if lengths.ndim != 1 or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(f"lengths must be an integer vector [B], not {lengths.dtype} {list(lengths.shape)}")
    return jnp.arange(length)[None] < lengths[:, None]


def window_mask(query_positions: jax.Array, key_positions: jax.Array, left: int | None, right: int | None) -> jax.Array:
    """Return which keys lie within `left` positions before and `right` positions after each query. Boolean [B, T, S].

    For five queries and keys, left = 1 and right = 2:
        1 1 1 0 0
        1 1 1 1 0
        0 1 1 1 1
        0 0 1 1 1
        0 0 0 1 1

    Args:
        query_positions: Integers [B|1, T].
        key_positions: Integers [S].
        left: Positions that are visible before a query; None: all.
        right: Positions that are visible after a query; 0 is causality, None: all.
    """
    distance = key_positions[None, None] - query_positions[:, :, None]
    visible = jnp.ones(distance.shape, bool)
    if left is not None:
        visible &= distance >= -left
    if right is not None:
        visible &= distance <= right
    return visible
