"""What CPUs want: products of few rows, caches that products read as they lie, and options of the compiler.

Each is here because of a measurement, which its comment gives, and can go when XLA no longer needs it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import jax
import jax.numpy as jnp

from jaxformer.backends import measured
from jaxformer.backends.default import append, are_numbers

FEW_ROWS = measured.MOST  # most rows for which a weight [O, I] can be 1.2 to 3 times as fast as its transpose
SMALL_WEIGHT = 2**14  # numbers; less is not worth it
LONGEST_PIECE = 4095  # XLA fuses vectors of less than 16 KiB
# XLA gives matrix products on CPUs to YNNPACK, whose kernels for a few rows, beams or a small batch, can take 1.8 times
# as long as those of Eigen, which it falls back to without. Eigen has none for integers: without YNNPACK, products of
# these are loops, which take three times as long for one row and far longer for more.
FEW_ROWS_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# XLA for CPUs removes the barriers of `jax.checkpoint`, finds that what is computed again was computed before, and
# keeps it all. Without the pass that removes them, a block is computed again, and its memory is free in between.
TRAINING_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def matmul_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return activations x [..., I] times the transpose of a weight [O, I]: [..., O] in float32 at least."""
    if not prefers_transposed(math.prod(x.shape[:-1]), weight.shape, jnp.promote_types(x.dtype, weight.dtype)):
        return _times_transposed(x, weight)

    def few_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
        y = few_rows_matmul(x.reshape(1, -1, x.shape[-1]), weight[None])  # [1, R, O]
        return y.reshape(*x.shape[:-1], len(weight))  # [..., O]

    return jax.lax.platform_dependent(x, weight, cpu=few_rows, default=_times_transposed)


def batched_matmul_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return `matmul_transposed` of each of a batch, such as queries x [X, R, I] and keys [X, O, I]: [X, R, O]."""
    shape = (weights.shape[0] * weights.shape[1], weights.shape[2])
    if not prefers_transposed(x.shape[1], shape, jnp.promote_types(x.dtype, weights.dtype)):
        return _batch_times_transposed(x, weights)
    return jax.lax.platform_dependent(x, weights, cpu=few_rows_matmul, default=_batch_times_transposed)


def prefers_transposed(rows: int, shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether on CPUs so many rows meet a weight [O, I] of that shape and type faster than its transpose."""
    if not are_numbers(rows, *shape):
        return False
    few, large = 0 < rows <= FEW_ROWS, math.prod(shape) >= SMALL_WEIGHT
    return few and large and _piece(shape[-1], rows) <= LONGEST_PIECE and rows <= few_rows(dtype)


def few_rows(dtype: jnp.dtype) -> int:
    """Return up to how many rows a loop over outputs multiplies fastest on this machine: 0 to `FEW_ROWS`."""
    known = jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16, jnp.float16)
    if not known or jax.default_backend() != "cpu":
        return 0
    return measured.few_rows(dtype, few_rows_matmul, _times, few_rows_options())


def _times(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, weight, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _times_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight.astype(x.dtype), axes, preferred_element_type=wide)


def _batch_times_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=wide)
    if are_numbers(*x.shape, *weights.shape) and 4 * x.shape[1] <= weights.shape[1] and x.shape[1] < x.shape[2]:
        # The small result is transposed: XLA on CPUs would transpose all weights.
        return jnp.swapaxes(product("XOI,XRI->XOR", weights, x), 1, 2)  # [X, R, O]
    return product("XRI,XOI->XRO", x, weights)


@jax.custom_jvp
def few_rows_matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return `batched_matmul_transposed` of few rows in about the time that reading the weights takes.

    Derivatives, and what `jax.vmap` makes of it, are plain products: the loop below is of use for the numbers alone.
    """
    return _loop_over_outputs(x, weights)


@few_rows_matmul.defjvp
def _derivative(
    arrays: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_batch_times_transposed, arrays, tangents)


@jax.custom_batching.custom_vmap
def _loop_over_outputs(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return rows x [X, R, I] times the transposes of [X, O, I].

    XLA's kernels take longer: for one row it reads eight rows of the weight side by side, for several it packs the
    weight first, and a batch of weights has one thread. But a vector times a matrix that is worked out on the way
    becomes a loop whose sums it may reorder, and so vectorise: here ones times the products of each row of the weight,
    read once from end to end, with all rows of x. It stands in a branch, as XLA would otherwise work out x for every
    output too; the other branch is for rows that all begin with NaN, of which every output is NaN.
    """
    (X, R, _), outputs, width = x.shape, weights.shape[1], _piece(x.shape[2], x.shape[1])

    def sums(x: jax.Array, weights: jax.Array) -> jax.Array:
        weights = weights.astype(jnp.float32).reshape(X, outputs, 1, -1, width)  # [X, O, 1, I / width, width]
        products = weights * x.astype(jnp.float32).reshape(X, 1, R, -1, width)  # [X, O, R, I / width, width]
        # [X, O, R, I / width]
        pieces = (jnp.ones(width, jnp.float32) @ products.reshape(-1, width).T).reshape(X, outputs, R, -1)
        return jnp.swapaxes(pieces.sum(-1), 1, 2)  # [X, R, O]

    def no_numbers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.full((X, R, outputs), jnp.nan, jnp.float32)

    return jax.lax.cond(jnp.isnan(x[..., 0]).all(), no_numbers, sums, x, weights)


@_loop_over_outputs.def_vmap
def _mapped(size: int, mapped: list[bool], x: jax.Array, weights: jax.Array) -> tuple[jax.Array, bool]:
    """Return plain products.

    Under `jax.vmap` the loop would materialize an array as large as the weights for every x.
    """
    return jax.vmap(_batch_times_transposed, [0 if axis else None for axis in mapped])(x, weights), True


def _piece(width: int, rows: int) -> int:
    """Return how many products are summed in one go: a divisor of the width.

    LLVM makes one chain of up to 512, in which each sum waits for the one before, so that these had better be short; of
    more it makes a loop with four chains, which is the fastest for several rows.
    """
    piece = 1024 if rows > 1 and width % 1024 == 0 else math.gcd(width, 128)
    return width if piece < 64 else piece


@cache
def few_rows_options() -> dict[str, str] | None:
    """Return FEW_ROWS_OPTIONS on CPUs, unless this version of XLA does not know it."""
    return known_options(FEW_ROWS_OPTIONS)


@cache
def training_options() -> dict[str, str] | None:
    """Return TRAINING_OPTIONS on CPUs, unless this version of XLA does not know it."""
    return known_options(TRAINING_OPTIONS)


def known_options(options: dict[str, str]) -> dict[str, str] | None:
    """Return options of the compiler on CPUs; None on other devices, and where XLA does not know one of them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def pack(x: jax.Array) -> jax.Array:
    """Return [X, S, H] without its first axis if that is 1.

    With an axis of size 1, XLA fuses the update of a cache into the product that reads it, which then happens twice:
    the cache is copied at every step.
    """
    return x[0] if are_numbers(x.shape[0]) and x.shape[0] == 1 else x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedKVCache:
    """`KVCache` as CPUs read it fastest.

    Rows and heads are one axis, before slots, unlike in activations: so the products of a decoding step read a cache
    as it lies, and what is written to it goes in its place. XLA would copy [B, K, S, H] twice for every token, and
    [B, S, K, H] once more to transpose it.

    Attributes:
        key: [B K, S, H], or [S, H] where B K is 1, see `pack`.
        value: The same for values.
        heads: Number of key-value heads K; static.
    """

    key: jax.Array
    value: jax.Array
    heads: int = field(metadata={"static": True})

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array) -> "PackedKVCache":
        """Return a full cache of keys and values [B, S, K, H]."""
        B, S, K, _ = key.shape
        # pack of [B K, S, H]
        packed = (pack(jnp.swapaxes(x, 1, 2).reshape(B * K, S, x.shape[3])) for x in (key, value))
        return cls(*packed, heads=K)

    @property
    def rows(self) -> int:
        """Number of sequences B."""
        return math.prod(self.key.shape[:-2]) // self.heads

    @property
    def capacity(self) -> int:
        """Number of tokens S that there is room for."""
        return self.key.shape[-2]

    def append(self, new: "PackedKVCache", start: int | jax.Array) -> "PackedKVCache":
        """Return a copy whose slots from `start`, of all rows or [B] of each, on hold `new`, of T slots."""
        if jnp.ndim(start):
            rows = jnp.repeat(jnp.broadcast_to(start, (self.rows,)), self.heads)  # [B K]
            return self._with(lambda old, x: pack(append(unpacked(old), unpacked(x), rows)), new)
        return self._with(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), start, -2), new)

    def reorder(self, rows: jax.Array) -> "PackedKVCache":
        """Return the cache of the batch rows `rows` [R]."""
        batches = (x.reshape(-1, self.heads, *x.shape[-2:])[rows] for x in (self.key, self.value))  # [R, K, S, H]
        # pack of [R K, S, H]
        return PackedKVCache(*(pack(x.reshape(-1, *x.shape[-2:])) for x in batches), heads=self.heads)

    def copy_slots(self, rows: jax.Array, start: int | jax.Array, slots: int) -> "PackedKVCache":
        """Return a copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        part = self._with(lambda old: jax.lax.dynamic_slice_in_dim(old, start, slots, -2))
        return self.append(part.reorder(rows), start)

    def prefix(self, slots: int) -> "PackedKVCache":
        """Return the first `slots` slots."""
        return self._with(lambda old: old[..., :slots, :])

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [B, S, K, H], as the operations take them."""
        # [B, K, S, H]
        key, value = (each.reshape(self.rows, self.heads, *each.shape[-2:]) for each in (self.key, self.value))
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, S, K, H]

    def _with(self, change: Callable[..., jax.Array], *others: "PackedKVCache") -> "PackedKVCache":
        """Return both arrays changed, each together with its counterparts."""
        return jax.tree.map(change, self, *others)


def unpacked(x: jax.Array) -> jax.Array:
    """Return [X, S, H] of what `pack` made of it."""
    return x.reshape(-1, *x.shape[-2:])  # [X, S, H]
