"""What a model consists of and what it costs, from shapes alone: nothing of it is ever allocated."""

import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    HeadConfig,
    LatentAttentionConfig,
    LearnedPositions,
    StackConfig,
    TransformerConfig,
    head_width,
)
from jaxformer.layers.experts import Experts
from jaxformer.layers.variables import parameter_path
from jaxformer.model import Transformer, abstract_model
from jaxformer.ops import cross_entropy
from jaxformer.training import Loss, OptimizerConfig, init_state, learning_rates, make_optimizer, make_train_step

SHORT = (16, 32, 64)  # lengths at which no attention runs in a loop
GROUP = 4  # query heads that share keys and values in many models with grouped-query attention


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model's inputs.

    Attributes:
        B: Number of sequences in a batch.
        S: Number of tokens that an encoder reads.
        T: Number of tokens that a decoder reads.
    """

    B: int
    S: int
    T: int


@dataclass(frozen=True)
class Row:
    """One module of a model, as a row of a table.

    Attributes:
        path: Path of the module, such as "decoder.blocks.0.attention"; "model" for the whole.
        kind: Name of its class.
        calls: Shapes of the inputs and of the output of each way in which it is called, see `shapes`.
        parameters: Number of parameters in it and in its parts.
        axes: Letters of the axes of its own variables, see `axes_of`.
    """

    path: str
    kind: str
    calls: tuple[tuple[str, str], ...]
    parameters: int
    axes: str = ""


@dataclass(frozen=True)
class Costs:
    """Costs of a model for inputs of some sizes.

    Attributes:
        parameters: Number of all parameters.
        active_parameters: Number of parameters that a token uses: without those of experts that it is not sent to.
        weights: Bytes of the parameters.
        forward: FLOPs of a forward pass on a batch.
        step: FLOPs of a training step on a batch: forward, loss, gradient, AdamW.
        cache_token: Bytes of the cache for one more token of one sequence.
        cache: Bytes of the cache for all tokens of the batch. 0 without a decoder.
        cross: Bytes of the keys and values of the source, for the whole batch. 0 without cross-attention.
        otherwise: Bytes for one more token with ordinary attention in the place of latent attention, by its kind. Empty
            without latent attention.
    """

    parameters: int
    active_parameters: int
    weights: int
    forward: float
    step: float
    cache_token: int
    cache: int
    cross: int
    otherwise: dict[str, int]


def abstract_inputs(config: TransformerConfig, sizes: Sizes) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the token ids that a call of the model takes, as shapes.

    Source [B, S] and target [B, T], or the only one.
    """
    lengths = [sizes.S] * (config.encoder is not None) + [sizes.T] * (config.decoder is not None)
    return tuple(jax.ShapeDtypeStruct((sizes.B, length), jnp.int32) for length in lengths)


def module_rows(config: TransformerConfig) -> list[Row]:
    """Return a row for every module of the model, each before its parts, in the order in which they were made.

    Shapes are observed while the model is traced. B, S and T stand for lengths that no other axis has.
    """
    first = 1 + max(max(leaf.shape) for leaf in jax.tree.leaves(abstract_model(config)))
    sizes = Sizes(first, first + 1, first + 2)
    letters = {size: letter for letter, size in vars(sizes).items()}
    letters |= {sizes.B * sizes.S: "B*S", sizes.B * sizes.T: "B*T"}  # routers see tokens one by one
    rows: list[Row] = []

    def trace(*inputs: jax.Array) -> jax.Array:
        model = Transformer(config, rngs=nnx.Rngs(0))
        for stack in (model.encoder, model.decoder):  # which would refuse lengths that their tables do not have
            if stack is not None and isinstance(stack.config.positions, LearnedPositions):
                positions = replace(stack.config.positions, length=sizes.T)
                stack.config = replace(stack.config, positions=positions)
        modules = list(walk(model, "model"))
        with recorded_calls([module for _, module in modules]) as calls:
            logits = model(*inputs)
        for path, module in modules:
            shown = dict.fromkeys((shapes(i, letters), shapes(o, letters)) for i, o in calls[id(module)])
            count = sum(leaf.size for leaf in jax.tree.leaves(module))
            rows.append(Row(path, type(module).__name__, tuple(shown), count, axes_of(module)))
        return logits

    jax.eval_shape(trace, *abstract_inputs(config, sizes))
    return rows


def axes_of(module: nnx.Module) -> str:
    """Return a letter for each axis of the module's own variables, such as "DNH, NH" for a weight and a bias."""
    return ", ".join(part.axes for part in vars(module).values() if isinstance(part, nnx.Variable))


def walk(module: nnx.Module, path: str) -> Iterator[tuple[str, nnx.Module]]:
    """Yield a module and all its parts, with their paths; lists of modules are numbered."""
    yield path, module
    prefix = "" if path == "model" else f"{path}."
    for name, part in vars(module).items():
        for index, child in enumerate(part if isinstance(part, nnx.List) else [part]):
            if isinstance(child, nnx.Module):
                number = f".{index}" if isinstance(part, nnx.List) else ""
                yield from walk(child, f"{prefix}{name}{number}")


@contextmanager
def recorded_calls(modules: list[nnx.Module]) -> Generator[dict[int, list[tuple[Any, Any]]]]:
    """Record the arguments and results of every call of these modules while this is open, by their `id`.

    Python looks `__call__` up in the class, so it is the classes' method that is replaced, and put back.
    """
    calls: dict[int, list[tuple[Any, Any]]] = {id(module): [] for module in modules}
    originals: dict[Any, Callable[..., Any]] = {type(module): type(module).__call__ for module in modules}

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(module: nnx.Module, *arguments: Any, **settings: Any) -> Any:
            result = original(module, *arguments, **settings)
            if id(module) not in calls:  # an expert, as a loop takes it out of the array of all of them
                return result
            calls[id(module)].append((arguments, result[:1] if isinstance(result, tuple) else (result,)))
            return result

        return call

    try:
        for kind, original in originals.items():
            kind.__call__ = recording(original)
        yield calls
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


def shapes(values: tuple[Any, ...], letters: dict[int, str]) -> str:
    """Return the shapes of the arrays among `values`, for example "[B, T, 512], [1, T]"."""
    arrays = [value for value in values if isinstance(value, jax.Array)]
    return ", ".join(f"[{', '.join(str(letters.get(size, size)) for size in array.shape)}]" for array in arrays)


def costs(config: TransformerConfig, sizes: Sizes) -> Costs:
    """Return what the model costs for inputs of these sizes: FLOPs as XLA counts them, bytes from the shapes."""
    model = abstract_model(config)
    leaves = jax.tree.leaves(model)
    cache, cross = cache_bytes(config, sizes)
    return Costs(
        parameters=sum(leaf.size for leaf in leaves),
        active_parameters=sum(leaf.size for leaf in leaves) - idle_parameters(model),
        weights=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        forward=flops(sizes, functools.partial(lower_forward, active(config))),
        step=flops(sizes, functools.partial(lower_step, active(config))),
        cache_token=cache // (sizes.B * sizes.T),
        cache=cache,
        cross=cross,
        otherwise=without_latents(config),
    )


def training_flops(config: TransformerConfig, batch: Any, *, trained: float = 1.0) -> float | None:
    """Return the FLOPs that a training step on a batch needs, by the formula of PaLM, appendix B.

    They are 2 per token and parameter that it is multiplied with, and 4 per query, key, head and unit of its width; as
    many again for the gradient of states, and of weights. Causal attention counts as if all keys were seen. None where
    the batch does not say what the model reads.

    Args:
        config: The model.
        batch: Arrays [B, S] and [B, T] by name: "source" and "target" of an encoder-decoder, else "inputs" or "source".
        trained: Share of the parameters that are trained.
    """
    both = config.encoder is not None and config.decoder is not None
    names = ("source", "target") if both else ("inputs", "source")
    found = [batch[name].shape for name in names if isinstance(batch, dict) and name in batch]
    if len(found) != 1 + both:
        return None
    (B, S), (_, T) = found[0], found[-1]
    forward = sum(
        2 * B * length * used_weights(config, side) + B * attention_flops(config, stack, length, S)
        for side, stack, length in (("encoder", config.encoder, S), ("decoder", config.decoder, T))
        if stack is not None
    )
    if isinstance(config.head, HeadConfig):
        width = config.main.embedding.dim or config.dim
        forward += 2 * B * T * (width if config.head.tied else config.dim) * config.main.embedding.vocab_size
    return forward * (2 + trained)


@functools.cache
def used_weights(config: TransformerConfig, side: str) -> int:
    """Return the parameters of a stack that each token is multiplied with."""
    stack = getattr(abstract_model(active(config)), side)

    def weights(part: Any) -> int:
        named = jax.tree_util.tree_leaves_with_path(part)
        return sum(leaf.size for path, leaf in named if parameter_path(path)[-1] == "weight")

    once = weights(stack) - weights(stack.blocks)
    return once + sum(map(weights, stack.applied))


def attention_flops(config: TransformerConfig, stack: StackConfig, T: int, S: int) -> float:
    """Return the FLOPs of the products of queries and keys, and of weights and values, of T queries; S in a source."""
    total = 0.0
    for block in stack.applied:
        for attention, keys in ((block.attention, T), (block.cross, S)):
            match attention:
                case LatentAttentionConfig():
                    widths = attention.qk_nope_head_dim + attention.qk_rope_head_dim
                    widths += attention.v_head_dim or attention.qk_nope_head_dim
                case AttentionConfig():
                    widths = 2 * head_width(attention, config.dim)
                    keys = min(keys, attention.window or keys)
                case None:
                    continue
            total += 2 * T * keys * attention.heads * widths
    return total


def idle_parameters(model: Transformer) -> int:
    """Return the parameters of the experts that a token does not go through."""
    mixtures = [module for _, module in walk(model, "model") if isinstance(module, Experts)]
    return sum(
        leaf.size * (mixture.config.experts - mixture.config.top_k) // mixture.config.experts
        for mixture in mixtures
        for leaf in jax.tree.leaves(mixture.experts)
    )


def active(config: TransformerConfig) -> TransformerConfig:
    """Return the model with one network, as wide as all experts of a token, in the place of each mixture of experts.

    Apart from the router it computes as much, without loops over experts.
    """

    def width(network: FeedForwardConfig | None) -> int:
        return 0 if network is None else network.d_ff or 4 * config.dim

    def without_experts(block: BlockConfig) -> BlockConfig:
        mixture = block.feed_forward
        if isinstance(mixture, FeedForwardConfig):
            return block
        hidden = mixture.top_k * width(mixture.expert) + width(mixture.shared)
        return replace(block, feed_forward=replace(mixture.expert, d_ff=hidden))

    def alone(stack: StackConfig | None) -> StackConfig | None:
        return stack and replace(stack, blocks=tuple(map(without_experts, stack.blocks)))

    return replace(config, encoder=alone(config.encoder), decoder=alone(config.decoder))


def cache_bytes(config: TransformerConfig, sizes: Sizes) -> tuple[int, int]:
    """Return the bytes of the decoder's own keys and values, and of those of the source; zeros without a decoder."""
    if config.decoder is None:
        return 0, 0
    states = jax.ShapeDtypeStruct((sizes.B, sizes.S, config.dim), jnp.float32) if config.encoder else None
    cache = jax.eval_shape(
        lambda model, x: model.init_cache(sizes.B, sizes.T, encoded=x), abstract_model(config), states
    )
    own, cross = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part)) for part in (cache.layers, cache.cross))
    return own, cross


def without_latents(config: TransformerConfig) -> dict[str, int]:
    """Return the bytes per token of caches of ordinary attention with as many heads as the latent attention here.

    Empty where no decoder layer has it. As in table 1 of DeepSeek-V2: keys and values of plain heads are as wide as the
    part of a key that is a head's own.
    """
    blocks = () if config.decoder is None else config.decoder.blocks
    layers = [block.attention for block in blocks if isinstance(block.attention, LatentAttentionConfig)]
    if not layers:
        return {}

    def bytes_of(numbers: Callable[[LatentAttentionConfig], int]) -> int:
        return sum(map(numbers, layers)) * jnp.dtype(jnp.float32).itemsize

    def key_width(config: LatentAttentionConfig) -> int:
        return config.qk_nope_head_dim + config.qk_rope_head_dim

    return {
        "expanded": bytes_of(lambda c: c.heads * (key_width(c) + (c.v_head_dim or c.qk_nope_head_dim))),
        "multi-head": bytes_of(lambda c: 2 * c.heads * c.qk_nope_head_dim),
        f"grouped-query, up to {GROUP} to a group": bytes_of(lambda c: 2 * -(-c.heads // GROUP) * c.qk_nope_head_dim),
    }


def flops(sizes: Sizes, lower: Callable[[Sizes], jax.stages.Lowered]) -> float:
    """Return the FLOPs of the program that `lower` makes for inputs of these sizes: additions and multiplications.

    XLA counts the body of a loop once, and long sequences are attended to in loops. But for a given batch the count is
    a polynomial of second degree in the lengths: for long ones it is extrapolated from short ones, without loops.
    """

    def count(S: int, T: int) -> float:
        analysis = lower(Sizes(sizes.B, S, T)).cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    if max(sizes.S, sizes.T) <= SHORT[-1]:
        return count(sizes.S, sizes.T)
    powers = [(s, t) for s, t in itertools.product(range(3), repeat=2) if s + t <= 2]
    points = [(SHORT[s], SHORT[t]) for s, t in powers]

    def terms(S: int, T: int) -> list[float]:
        return [(S / SHORT[0]) ** s * (T / SHORT[0]) ** t for s, t in powers]

    values = np.array([count(*point) for point in points])
    coefficients = np.linalg.solve(np.array([terms(*point) for point in points]), values)
    return float(np.dot(terms(sizes.S, sizes.T), coefficients))


def lower_forward(config: TransformerConfig, sizes: Sizes) -> jax.stages.Lowered:
    """Return the forward of a whole batch, lowered."""
    return jax.jit(Transformer.__call__).lower(abstract_model(config), *abstract_inputs(config, sizes))


def lower_step(config: TransformerConfig, sizes: Sizes) -> jax.stages.Lowered:
    """Return a training step on a whole batch, lowered: forward with dropout, loss, gradient, AdamW."""
    graphdef, params = nnx.split(abstract_model(config))
    settings = OptimizerConfig()
    optimizer = make_optimizer(settings, 1)

    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Loss]:
        logits = nnx.merge(graphdef, params)(*batch, dropout_key=key)
        counts = logits.shape[:-1] == batch[-1].shape  # else labels are no tokens, and cost next to nothing
        mean = cross_entropy(logits, batch[-1]) if counts else logits.mean()
        return mean, Loss(mean, jnp.int32(batch[-1].size))

    state = jax.eval_shape(lambda params: init_state(params, optimizer, 0), nnx.to_pure_dict(params))
    step = make_train_step(loss, optimizer, learning_rates(settings, 1))
    return jax.jit(step).lower(state, abstract_inputs(config, sizes))
