"""A model drawn by hand: the next logits depend on every token so far, through a small hash of them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

CODES = 1009


def make_tables(rng: np.random.Generator, vocabulary: int, scale: float = 2.0) -> np.ndarray:
    """The logits after each hash code, float32 [CODES, V]."""
    return (scale * rng.normal(size=(CODES, vocabulary))).astype(np.float32)


def empty_cache(batch: int) -> dict[str, jax.Array]:
    """The hash of no tokens for each row, and how many tokens were read."""
    return {"code": jnp.zeros(batch, jnp.int32), "length": jnp.zeros((), jnp.int32)}


def read(tables: jax.Array, tokens: jax.Array, cache: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A step: the logits [R, V] after tokens [R, T] and the cache with them."""
    code = cache["code"]
    for t in range(tokens.shape[1]):
        code = (code * 31 + tokens[:, t] + 7) % CODES
    return tables[code], {"code": code, "length": cache["length"] + tokens.shape[1]}


def make_step(tables: np.ndarray) -> jax.tree_util.Partial:
    """The step with its tables as arguments."""
    return jax.tree_util.Partial(read, jnp.asarray(tables))


def logits_after(tables: np.ndarray, tokens: list[int]) -> list[float]:
    """What the step says after a whole sequence, in plain Python."""
    code = 0
    for token in tokens:
        code = (code * 31 + token + 7) % CODES
    return tables[code].tolist()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ChainCache:
    """A cache with the parts of a Transformer's: a hash per row, and an offset per source that beams share."""

    code: jax.Array
    source: jax.Array

    def reorder(self, rows: jax.Array) -> "ChainCache":
        """The rows' hashes; sources stay."""
        return ChainCache(self.code[rows], self.source)


class ChainModel:
    """The same as a model for `generate`. As an encoder-decoder, the sum of the real source tokens shifts the hash."""

    def __init__(self, tables: np.ndarray | jax.Array, encoder: bool, longest: int | None = None):
        self.tables, self.encoder, self.longest = jnp.asarray(tables), encoder, longest

    @property
    def vocab_sizes(self) -> tuple[int | None, int | None]:
        """Source and target vocabulary."""
        return (self.tables.shape[1] + 2 if self.encoder else None), self.tables.shape[1]

    @property
    def max_length(self) -> int | None:
        """Longest sequence."""
        return self.longest

    @property
    def max_source_length(self) -> int | None:
        """Longest source."""
        return self.longest

    def encode(self, tokens: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """The sum of the real tokens, each one more than its id, [B]."""
        assert mask is not None
        return jnp.sum(tokens + 1, axis=1, where=mask)

    def init_cache(
        self, batch: int, capacity: int, *, encoded: jax.Array | None = None, encoded_mask: jax.Array | None = None
    ) -> ChainCache:
        """Hashes of nothing."""
        return ChainCache(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32) if encoded is None else encoded)

    def with_position_ids_from(self, rule: str) -> "ChainModel":
        """Nothing to prepare."""
        return self

    def optimize_for_decoding(self, batch_size: int) -> "ChainModel":
        """As it is."""
        return self

    def prefill(
        self, tokens: jax.Array, cache: ChainCache, *, length: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, ChainCache]:
        """Reads the real ones of the first `length` tokens."""
        reads = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None] < length, tokens.shape)
        reads = reads if mask is None else reads & mask

        def read_column(code: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            token, reads = column
            return jnp.where(reads, (code * 31 + token + 7) % CODES, code), None

        code, _ = jax.lax.scan(read_column, cache.code, (tokens.T, reads.T))
        return self.logits(ChainCache(code, cache.source))

    def step(self, tokens: jax.Array, cache: ChainCache) -> tuple[jax.Array, ChainCache]:
        """Reads one token."""
        return self.logits(ChainCache((cache.code * 31 + tokens[:, 0] + 7) % CODES, cache.source))

    def logits(self, cache: ChainCache) -> tuple[jax.Array, ChainCache]:
        """The logits of the hashes, and the cache."""
        source = jnp.repeat(cache.source, cache.code.shape[0] // cache.source.shape[0])
        return self.tables[(cache.code + source) % CODES], cache


jax.tree_util.register_pytree_node(
    ChainModel,
    lambda model: ((model.tables,), (model.encoder, model.longest)),
    lambda static, leaves: rebuild(leaves[0], *static),
)


def rebuild(tables: jax.Array, encoder: bool, longest: int | None) -> ChainModel:
    """A model around whatever stands for its tables while JAX looks at it."""
    model = object.__new__(ChainModel)
    model.tables, model.encoder, model.longest = tables, encoder, longest
    return model
