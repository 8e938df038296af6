# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From one attention head to a trained Transformer
#
# A walk through "Attention Is All You Need" (Vaswani et al. 2017) with this library in hand. Each idea comes with a
# picture, with numbers that the cell above has just computed, and with the section of the paper that it belongs to.
# Where something is built by hand, an `assert` compares it with the library right away: if this page runs, it is true.
#
# 1. One head, by hand
# 2. Why the scale
# 3. Masks
# 4. Several heads
# 5. Positions
# 6. The feed-forward network
# 7. Residuals and norms
# 8. The whole encoder-decoder
# 9. The loss: shifted labels, padding
# 10. Training
# 11. What the trained model looks at
# 12. Greedy decoding and beam search
# 13. The cache
# 14. A decoder-only model, shape by shape
# 15. Smaller caches, more parameters: latent attention and experts
# 16. Seven common bugs, and the tests that catch them
#
# Letters for dimensions, here and in all of the code: B batch, T query positions, S key positions, D model width,
# N heads, H width of a head, F inner width of the feed-forward network, V vocabulary, L layers.

# %%
"""What all pages share: imports, and how pictures are shown."""

import dataclasses
import io
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxformer
from jaxformer import Transformer, attention_scores, attention_weights, dot_product_attention
from jaxformer.config import (
    AttentionConfig,
    FeedForwardConfig,
    LatentAttentionConfig,
    LearnedPositions,
    MoEConfig,
    Rope,
    SigmoidRouter,
)
from jaxformer.data import (
    BOS,
    EOS,
    PAD,
    Batch,
    Symbols,
    documents,
    example,
    held_out,
    train_tokenizer,
    training_batches,
)
from jaxformer.data.pipeline import IGNORED
from jaxformer.layers import Attention, Block, FeedForward, LatentAttention
from jaxformer.ops import ACTIVATIONS, AttentionMask, expert_load, weighted_values
from jaxformer.tasks import Reverse, SequenceSettings, exact
from jaxformer.training import (
    OptimizerConfig,
    init_state,
    learning_rates,
    make_optimizer,
    make_train_step,
    update_router_biases,
)
from jaxformer.training.step import Loss, Metrics, TrainStep
from jaxformer.visualize import attention_figure, entropies, graph_figure, mask_figure, positions_figure

np.set_printoptions(precision=3, suppress=True)
BLUE, ORANGE, GREEN, RED, GREY = "#3b6ea8", "#d9822b", "#4c956c", "#b8434e", "#8a8a8a"


def panels(count: int, width: float = 9.5, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """An empty figure with `count` panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def show(figure: Figure, says: str, dpi: int = 80) -> None:
    """Display a figure; `says` is what it shows, for those who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    display(Image(buffer.getvalue(), alt=says))


def table(axes: Axes, numbers: np.ndarray, rows: list[str], columns: list[str], title: str) -> None:
    """Draw a matrix of weights from 0 to 1 as coloured cells with their numbers in them."""
    axes.imshow(numbers, vmin=0, vmax=1.3, cmap="Blues")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    for (row, column), number in np.ndenumerate(numbers):
        said, ink = ("0", "0.6") if number == 0 else (f"{number:.2f}", "white" if number > 0.7 else "0.1")
        axes.text(column, row, said, ha="center", va="center", fontsize=9, color=ink)


def equal(ours: jax.Array, theirs: jax.Array) -> bool:
    """Whether two arrays agree to rounding."""
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-5)


# %% [markdown]
# ## 1. One head, by hand
#
# *Section 3.2.1, equation 1:* $\text{Attention}(Q, K, V) = \text{softmax}(Q K^T / \sqrt{H})\, V$
#
# Every token asks a question (its **query**), offers a label to be found by (its **key**) and holds something to pass
# on (its **value**). A question meets all labels in a dot product; the softmax turns these scores into shares of one
# whole; the answer is the mean of the values in these shares. Here are three tokens with heads just two numbers wide,
# so that everything can be drawn on paper. The word *bank* wants to know which bank it is.

# %%
words = ["the", "river", "bank"]
queries = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
keys = np.array([[0, 0], [1, 2], [2, 1]], np.float32)
values = np.array([[-1, -1], [0, 2], [2, 0]], np.float32)

scores = [float(queries[2] @ key) / math.sqrt(2) for key in keys]
exponentials = [math.exp(score) for score in scores]
weights = [exponential / sum(exponentials) for exponential in exponentials]
answer = sum(weight * value for weight, value in zip(weights, values, strict=True))

print("the query of 'bank' is", queries[2])
for word, key, score, exponential, weight in zip(words, keys, scores, exponentials, weights, strict=True):
    print(f"  {word:>5}: key {key}, score {score:.3f}, exp {exponential:6.3f}, weight {weight:.3f}")
print("weights sum to", round(sum(weights), 6), "and mix the values to", answer)

# %% [markdown]
# The library computes the same for all queries, all heads and all rows of a batch at once. It wants `[B, T, N, H]`, so
# one row and one head get axes of their own. Score, weight, answer: three functions, one step after the other.

# %%
query, key, value = (jnp.asarray(x)[None, :, None, :] for x in (queries, keys, values))
assert equal(attention_scores(query, key)[0, 0, 2], jnp.array(scores))
assert equal(attention_weights(query, key)[0, 0, 2], jnp.array(weights))
assert equal(dot_product_attention(query, key, value)[0, 2, 0], jnp.array(answer))

figure, (plane, shares, mixture) = panels(3, height=3.3)
arrows = {"query of bank": (queries[2], ORANGE), "key of river": (keys[1], BLUE), "key of bank": (keys[2], BLUE)}
for height, (name, (vector, colour)) in zip((0.45, 0.1, 0.1), arrows.items(), strict=True):
    plane.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
    plane.text(*np.add(vector, [-0.3, height]), name, color=colour)
plane.plot(0, 0, "o", color=BLUE)
plane.text(0.12, -0.3, "key of the", color=BLUE)
plane.set(xlim=(-0.5, 3.3), ylim=(-0.6, 2.9), aspect="equal", title="alike directions score high")
table(shares, np.asarray(attention_weights(query, key)[0, 0]), words, words, "weights: a row per query")
answers = np.asarray(dot_product_attention(query, key, value)[0, :, 0])
mixture.fill(*values.T, color=BLUE, alpha=0.12)
for word, corner, inside, beside in zip(words, values, answers, ([-0.2, -0.4], [-0.2, 0.2], [-0.6, -0.4]), strict=True):
    mixture.plot(*corner, "s", color=BLUE)
    mixture.text(*(corner + beside), f"value of {word}", color=BLUE)
    mixture.plot(*inside, "o", color=ORANGE)
    mixture.text(*np.add(inside, [0.12, 0.08]), word, color=ORANGE)
mixture.set(xlim=(-1.5, 3.1), ylim=(-1.7, 2.8), aspect="equal", title="answers are mixtures of values")
for axes in (plane, mixture):
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
show(figure, "Left: query and keys as arrows. Middle: the weights. Right: answers inside the triangle of the values.")

# %% [markdown]
# Read it from the left: the question of *bank* points the way the key of *river* does, so *river* gets the largest
# share, and the answer lands nearest to the value of *river*. The word *the* asks nothing: all scores are zero, all
# shares equal, and its answer is the plain mean. No answer can leave the triangle, because shares are never negative
# and sum to one.
#
# ## 2. Why the scale
#
# *Section 3.2.1, footnote 4.* A score is a sum of H products. If these are independent with variance one, the sum has
# variance H: wider heads, wilder scores. A softmax over wild scores puts everything on one key, and then it is deaf: a
# small change of the scores changes nothing, so nothing is learned. Dividing by $\sqrt{H}$ keeps the variance at one.

# %%
widths = [4, 16, 64, 256, 1024]
spread, largest, sensitivity = ({True: [], False: []} for _ in range(3))
for width in widths:
    asked, offered = jax.random.normal(jax.random.key(width), (2, 1, 64, 1, width))
    for scaled in (True, False):
        scale = None if scaled else 1.0
        weights = attention_weights(asked, offered, scale=scale)
        spread[scaled].append(float(attention_scores(asked, offered, scale=scale).std()))
        largest[scaled].append(float(weights.max(axis=-1).mean()))
        # The derivatives of the weights by their own scores are p (1 - p); summed over the keys, 1 - sum of p^2.
        sensitivity[scaled].append(float((1 - (weights**2).sum(axis=-1)).mean()))

print(f"{'width H':>8} {'deviation of scores':>27} {'largest of 64 weights':>27} {'sensitivity':>24}")
print(" " * 8, *[f"{'unscaled':>15} {'scaled':>8}" for _ in range(3)])
for index, width in enumerate(widths):
    columns = (
        f"{measured[s][index]:{n}.3f}" for measured in (spread, largest, sensitivity) for s, n in ((0, 15), (1, 8))
    )
    print(f"{width:8}", *columns)

# %%
figure, axes = panels(3)
titles = ["deviation of the scores", "largest of 64 weights", "how far weights still follow scores"]
for panel, measured, title in zip(axes, (spread, largest, sensitivity), titles, strict=True):
    panel.plot(widths, measured[False], "o-", color=RED, label="unscaled")
    panel.plot(widths, measured[True], "o-", color=BLUE, label="divided by √H")
    panel.set(xscale="log", title=title, xlabel="width of the head, H")
    panel.grid(alpha=0.3)
axes[0].plot(widths, np.sqrt(widths), ":", color=GREY, label="√H")
axes[0].set_yscale("log")
for panel in axes[1:]:
    panel.set_ylim(-0.05, 1.05)
axes[0].legend()
show(figure, "Unscaled scores grow with the root of the width, weights saturate at 1 and their sensitivity vanishes.")

# %% [markdown]
# ## 3. Masks
#
# *Section 3.2.3.* Two things must not be seen. A decoder must not see the **future**, or it would learn to read the
# answer instead of predicting it. And nobody should see **padding**, which only fills short rows of a batch. Both are
# decided *before* the softmax: a hidden score becomes minus infinity, its exponential is exactly zero, and what
# remains still sums to one.

# %%
T, real = 5, 3
causal = jaxformer.causal_mask(T)
padding = jaxformer.padding_mask(jnp.array([real]), T)
masks = {"causal": causal, "padding": jnp.broadcast_to(padding, (T, T)), "both": causal & padding}
show(mask_figure({name: np.asarray(mask) for name, mask in masks.items()}), "Which keys each query may see.")

asked, offered = jax.random.normal(jax.random.key(1), (2, 1, T, 1, 8))
print("scores with both masks:")
print(np.asarray(attention_scores(asked, offered, mask=AttentionMask(causal=True, key_valid=padding))[0, 0]))

# %% [markdown]
# In code, say what the structure *is* (`AttentionMask`: causal, which keys are real) rather than drawing the T x S
# square: the library then may choose a faster way to compute it. The written-out mask means the same.

# %%
seen = {
    "no mask": attention_weights(asked, offered),
    "causal": attention_weights(asked, offered, mask=AttentionMask(causal=True)),
    "padding": attention_weights(asked, offered, mask=AttentionMask(key_valid=padding)),
    "both": attention_weights(asked, offered, mask=AttentionMask(causal=True, key_valid=padding)),
}
assert equal(seen["both"], attention_weights(asked, offered, mask=masks["both"]))
figure, axes = panels(4, width=11, height=2.9)
for panel, (name, weights) in zip(axes, seen.items(), strict=True):
    assert equal(weights.sum(axis=-1), jnp.ones((1, 1, T)))
    table(panel, np.asarray(weights[0, 0]), list("01234"), list("01234"), name)
assert (np.asarray(seen["both"][0, 0])[~np.asarray(masks["both"])] == 0).all()  # zero, not merely small
show(figure, "The same attention map without a mask, with each mask and with both.")

nothing = jnp.full((1, 3), -jnp.inf)
print("a softmax over nothing:", np.asarray(jax.nn.softmax(nothing)[0]))
print(
    "a query here that sees nothing:",
    np.asarray(attention_weights(asked, offered, mask=jnp.zeros((T, T), bool))[0, 0, 0]),
)

# %% [markdown]
# The last two lines matter more than they seem: a row of pure padding is common in batches, and one NaN would spoil
# all gradients. A query that sees nothing answers with zeros.
#
# ## 4. Several heads
#
# *Section 3.2.2:* $\text{MultiHead} = \text{Concat}(\text{head}_1 \dots \text{head}_N)\, W^O$
#
# One head gives one mean. To know *two* things, say the previous token and the first one, a single head has to average
# them, and a mean does not say which was which. Several narrow heads ask several questions side by side and keep the
# answers apart. Below, three heads are given keys and queries on purpose: keys name their own position, queries the
# one they want.

# %%
T, N = 7, 3
places = jnp.arange(T)
wanted = jnp.stack([places, jnp.maximum(places - 1, 0), jnp.zeros(T, int)], axis=1)  # itself, previous, first
query = 50 * jax.nn.one_hot(wanted, T)[None]  # [B, T, N, H] with H = T
key = jnp.broadcast_to(jnp.eye(T)[None, :, None], (1, T, N, T))
maps = attention_weights(query, key)
letters = list("reverse")
figure = attention_figure(
    [np.asarray(maps[0])], letters, letters, title="Three questions: itself? the one before? the first?"
)
show(figure, "Three attention maps: a diagonal, the diagonal below it, and the first column.")

one_head = (maps[0, 1] + maps[0, 2]) / 2  # what a single head must do to see the previous and the first token
first, other = jax.random.normal(jax.random.key(2), (2, T, 4))
sentence = jnp.concatenate([first[:1], other[1:]])  # the third token has before it ...
swapped = sentence.at[jnp.array([0, 1])].set(sentence[jnp.array([1, 0])])  # ... the same two tokens in another order
for name, weights in {"one head": one_head[None], "two heads": maps[0, 1:]}.items():
    change = [
        weighted_values(weights[None], jnp.repeat(x[None, :, None], len(weights), 2))[0, 2] for x in (sentence, swapped)
    ]
    print(f"{name}: exchanging the two tokens changes the answer by {np.abs(change[0] - change[1]).max():.3f}")

# %% [markdown]
# A module owns four projections and calls the function of section 1. Splitting the width into N heads costs nothing:
# the matrices are as large as for one head of full width. And joining heads by $W^O$ is the same as giving each head
# its own slice of $W^O$ and adding what they say: heads are independent voices that write into one sum.

# %%
B, T, D, N = 2, 7, 24, 4
states = jax.random.normal(jax.random.key(3), (B, T, D))
attention = Attention(AttentionConfig(heads=N), D, rngs=nnx.Rngs(0))
for name in ("query", "key", "value", "output"):
    print(f"{name:>6}: weight {getattr(attention, name).weight.shape}")

query, key, value = (
    jnp.einsum("BTD,DNH->BTNH", states, getattr(attention, name).weight[...]) for name in ("query", "key", "value")
)
past = AttentionMask(causal=True)
heads = dot_product_attention(query, key, value, mask=past)  # biases start at zero, so that leaving them out is right
joined = jnp.einsum("BTNH,NHD->BTD", heads, attention.output.weight[...])
voices = [heads[:, :, n] @ attention.output.weight[n] for n in range(N)]
library = attention(states, mask=past).states
assert equal(joined, library)
assert equal(sum(voices), library)
print("queries", query.shape, "-> heads", heads.shape, "-> joined", joined.shape)
for heads_tried in (1, 4, 12):
    module = Attention(AttentionConfig(heads=heads_tried), D, rngs=nnx.Rngs(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(module))
    print(f"{heads_tried:2} heads of width {D // heads_tried:2}: {count} parameters")

# %% [markdown]
# ## 5. Positions
#
# *Section 3.5.* Attention looks at *what* stands there and never at *where*: shuffle the tokens, and the answers come
# out shuffled in the same way. Word order has to be put into the states themselves.

# %%
shuffle = jax.random.permutation(jax.random.key(4), T)


def without_mask(x: jax.Array) -> jax.Array:
    """What the attention layer of section 4 says if everybody sees everybody."""
    return attention(x).states


assert equal(without_mask(states[:, shuffle]), without_mask(states)[:, shuffle])
print("order", shuffle, "of the tokens gives the same answers in that order")
encoding = jaxformer.sinusoidal_positions(T, D)[None]
moved = without_mask((states + encoding)[:, shuffle]) - without_mask(states + encoding)[:, shuffle]
placed = without_mask(states[:, shuffle] + encoding) - without_mask(states + encoding)[:, shuffle]
print(f"positions that travel with their tokens: difference {np.abs(moved).max():.6f}")
print(f"positions that stay in their places:     difference {np.abs(placed).max():.3f}")

# %% [markdown]
# The paper adds a fixed pattern of sines and cosines, fast ones in the first dimensions and ever slower ones behind.
# Each position has a pattern of its own, as each number has digits: the fast waves tell neighbours apart, the slow
# ones regions.

# %%
sinusoids = np.asarray(jaxformer.sinusoidal_positions(64, 32))
show(
    positions_figure(sinusoids),
    "Sinusoids of 64 positions: fast waves in the first dimensions, slow ones in the last.",
    dpi=70,
)

# %% [markdown]
# Why waves? Because moving by k positions turns every pair of dimensions by a fixed angle, whatever the position was:
# "k to the left" is one linear map that a head can learn. Therefore the dot product of two encodings depends on their
# distance alone. **Rotary** positions (Su et al. 2021) take this idea further and turn the queries and keys
# themselves: then each *score* knows the distance, and nothing has to be added to the states.

# %%
here, there = sinusoids[:-5], sinusoids[5:]
shift, *_ = np.linalg.lstsq(here, there)  # one matrix for all positions at once
print(f"one matrix moves every position by five: largest error {np.abs(here @ shift - there).max():.1e}")

alike = sinusoids @ sinusoids.T
asked, offered = jax.random.normal(jax.random.key(5), (2, 1, 1, 1, 32))
turn = jaxformer.rope_cos_sin(places := jnp.arange(64)[None], jaxformer.rotary_frequencies(32))
turned = [jaxformer.apply_rope(jnp.repeat(x, 64, axis=1), turn) for x in (asked, offered)]
rotary = np.asarray(attention_scores(*turned)[0, 0])

figure, (left, middle, right) = panels(3, width=11)
left.imshow(alike, cmap="magma", interpolation="nearest")
left.set(title="sinusoids: every pair's dot product", xlabel="position", ylabel="position")
for panel, products, title in (
    (middle, alike, "by distance: dot product"),
    (right, rotary, "rotary: score of one q and k"),
):
    for position, style in ((40, "-"), (50, "--"), (60, ":")):
        panel.plot(
            np.arange(36), products[position, position - np.arange(36)], style, lw=2, label=f"from position {position}"
        )
    panel.set(xlabel="distance to the left", title=title)
    panel.grid(alpha=0.3)
middle.legend()
show(figure, "Dot products of sinusoids and rotary scores fall on one curve for every starting position.")
for products in (alike, rotary):
    for distance in range(36):
        assert np.allclose(np.diagonal(products, -distance), products[distance, 0], atol=1e-4)

# %% [markdown]
# ## 6. The feed-forward network
#
# *Section 3.3, equation 2:* $\text{FFN}(x) = \max(0, x W_1 + b_1)\, W_2 + b_2$
#
# Attention moves information between positions; the feed-forward network then works on each position by itself, with
# the same weights everywhere. It is wider inside than outside, and most of a model's parameters live in it.

# %%
network = FeedForward(FeedForwardConfig(), D, rngs=nnx.Rngs(1))
up, down = network.up, network.down
by_hand = jnp.maximum(0, states @ up.weight[...]) @ down.weight[...]  # biases start at zero here too
assert equal(by_hand, network(states))
assert equal(network(states)[:, 3:4], network(states[:, 3:4]))
print("up", up.weight.shape, "down", down.weight.shape, "states", states.shape, "->", network(states).shape)

paper = nnx.eval_shape(lambda: Transformer(jaxformer.paper_base(), rngs=nnx.Rngs(0)))  # shapes only: costs no memory


def parameters(module: nnx.Module) -> int:
    """How many numbers a module learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


block = paper.decoder.blocks[0]
shares = {
    "self-attention": parameters(block.attention),
    "cross-attention": parameters(block.cross),
    "feed-forward": parameters(block.feed_forward),
    "three norms": parameters(block) - sum(map(parameters, (block.attention, block.cross, block.feed_forward))),
}
figure, (left, right) = panels(2, height=2.8)
inputs = jnp.linspace(-3, 3, 200)
for name, colour in {"relu": BLUE, "gelu": ORANGE, "silu": GREEN}.items():
    left.plot(inputs, ACTIVATIONS[name](inputs), color=colour, lw=2, label=name)
left.set(title="activations", xlabel="input", ylim=(-0.5, 3))
left.grid(alpha=0.3)
left.legend()
bars = right.barh(list(shares), list(shares.values()), color=[BLUE, BLUE, ORANGE, GREY])
right.bar_label(bars, [f" {count:,} ({count / parameters(block):.1%})" for count in shares.values()], fontsize=9)
right.set(title="parameters of one of the paper's decoder layers", xlim=(0, 3.2e6), xticks=())
right.invert_yaxis()
right.spines[["top", "right", "bottom"]].set_visible(False)
show(figure, "Left: activation functions. Right: how the parameters of a layer divide.")

# %% [markdown]
# ## 7. Residuals and norms
#
# *Sections 3.1 and 5.4:* $\text{LayerNorm}(x + \text{Sublayer}(x))$
#
# A sub-layer does not replace the states, it *adds* to them: think of a shared notebook in which every layer writes a
# line. What a token was stays readable to the top, and on the way back the gradient passes each sum undiminished. The
# **norm** keeps the states at one size. The paper normalises behind each sum (post-LN); most models today normalise
# what enters a sub-layer and leave the path itself untouched (pre-LN). To see what each part is for, take it away: we
# send states through a deep stack, and a gradient back, one block at a time.

# %%
DEPTH, T = 24, 16
normed = jaxformer.layer_norm(5 + 3 * states, jnp.ones(D), jnp.zeros(D))
print(f"layer norm: mean {np.abs(normed.mean()):.3f}, deviation {normed.std():.3f}, wherever the states came from")


def library_block(block: Block, x: jax.Array) -> jax.Array:
    """A block, pre-LN or post-LN as its configuration says."""
    return block(x, mask=past).states


def block_by_hand(block: Block, x: jax.Array, *, residual: bool, norm: bool) -> jax.Array:
    """The pre-LN block of equation 1 and 2, with or without the sums and the norms around its two sub-layers."""

    def attend(states: jax.Array) -> jax.Array:
        return block.attention(states, mask=past).states

    for sub_layer, normalise in ((attend, block.attention_norm), (block.feed_forward, block.feed_forward_norm)):
        change = sub_layer(normalise(x) if norm else x)
        x = x + change if residual else change
    return x


def make_blocks(norm_order: str) -> list[Block]:
    """Fresh blocks, 64 wide with 4 heads."""
    stack = jaxformer.decoder_only(11, length=T, dim=64, layers=1, heads=4).decoder
    config = dataclasses.replace(stack.blocks[0], norm_order=norm_order)
    return [Block(config, 64, rngs=nnx.Rngs(seed)) for seed in range(DEPTH)]


start = jax.random.normal(jax.random.key(6), (1, T, 64))
block = make_blocks("pre")[0]
assert equal(block_by_hand(block, start, residual=True, norm=True), library_block(block, start))


# %%
def likeness(x: jax.Array) -> float:
    """How alike the T positions are: the mean cosine between the states of two of them."""
    directions = x[0] / jnp.linalg.norm(x[0], axis=-1, keepdims=True)
    return float((directions @ directions.T)[~np.eye(T, dtype=bool)].mean())


def journey(blocks: list[Block], forward: object) -> tuple[list[float], list[float], list[float]]:
    """Size and likeness of the states behind each block, and the size of the gradient that comes back to its input."""
    forwards = jax.jit(forward)
    backwards = jax.jit(lambda block, x, gradient: jax.vjp(partial(forward, block), x)[1](gradient)[0])
    passed = [start]
    for block in blocks:
        passed.append(forwards(block, passed[-1]))
    gradients = [jax.random.normal(jax.random.key(7), start.shape)]
    for block, x in zip(reversed(blocks), reversed(passed[:-1]), strict=True):
        gradients.append(backwards(block, x, gradients[-1]))
    sizes = [float(jnp.sqrt((x**2).mean())) for x in passed]
    return sizes, [likeness(x) for x in passed], [float(jnp.linalg.norm(gradient)) for gradient in reversed(gradients)]


journeys = {
    "pre-LN": journey(make_blocks("pre"), library_block),
    "post-LN": journey(make_blocks("post"), library_block),
    "no norms": journey(make_blocks("pre"), partial(block_by_hand, residual=True, norm=False)),
    "no residuals": journey(make_blocks("pre"), partial(block_by_hand, residual=False, norm=True)),
    "neither": journey(make_blocks("pre"), partial(block_by_hand, residual=False, norm=False)),
}
print(f"after {DEPTH} layers   {'size of states':>15} {'likeness':>10} {'gradient at the input / at the output':>40}")
for name, (sizes, alike, gradients) in journeys.items():
    print(f"{name:>15}   {sizes[-1]:15.2g} {alike[-1]:10.3f} {gradients[0] / gradients[-1]:40.2g}")

# %%
figure, axes = panels(3, width=11, height=3.4)
titles = ["size of the states", "likeness of the positions", "gradient on its way back"]
for panel, index, title in zip(axes, range(3), titles, strict=True):
    for (name, measured), colour in zip(journeys.items(), (BLUE, GREEN, GREY, RED, ORANGE), strict=True):
        panel.plot(measured[index], color=colour, lw=2, label=name)
    panel.set(title=title, xlabel="layer")
    panel.grid(alpha=0.3)
axes[0].set_yscale("log")
axes[2].set_yscale("log")
axes[1].legend(loc="lower right")
show(figure, "States and gradients through a deep stack with and without residuals and norms.")

# %% [markdown]
# Without norms the states explode. Without residuals the norms still keep everything at a healthy size, and yet all is
# lost: averaging over and over makes all positions alike, and a model that cannot tell its tokens apart has nothing to
# say. With neither, the gradient dies before it arrives. Pre-LN keeps the positions apart the longest, which is one
# reason why deep models prefer it; post-LN works well at the paper's depth with the warm-up of section 5.3.
#
# ## 8. The whole encoder-decoder
#
# *Section 3.1, figure 1.* The encoder reads the source, every position seeing every other. The decoder writes the
# target: causal self-attention over what it has said, **cross-attention** with queries of its own and keys and values
# of the encoder's output, then the feed-forward network. One table of embeddings serves as input of both and,
# transposed, as the output layer; inputs are multiplied by the root of the width, so that positions do not drown them
# (*section 3.4*).
#
# This is the model that we shall train, to say a sequence backwards. It is small, and otherwise complete.

# %%
task = Reverse(SequenceSettings(text=Symbols(symbols=10, max_length=8)))
config = jaxformer.encoder_decoder(task.text.vocab_size, dim=64, layers=2, heads=4, norm_order="pre", dropout=0.0)
model = Transformer(config, rngs=nnx.Rngs(0))
show(
    graph_figure(config),
    "Encoder and decoder side by side, as in figure 1 of the paper, with the shapes between layers.",
)
print(f"{parameters(model):,} parameters")

# %%
source = jnp.array([task.text.read("3 1 4 1 5 9 2 6"), task.text.read("2 7 1 8 2 8 1 8")])
target = jnp.full((2, 5), BOS)
seen = model(source, target, return_intermediates=True)
print("source", source.shape, "target", target.shape, "-> logits", seen.logits.shape)
for name, stack in (("encoder", seen.encoder), ("decoder", seen.decoder)):
    print(f"{name}: {len(stack.hidden_states)} x states {stack.hidden_states[0].shape}")
    print(f"         {len(stack.attentions)} x self-attention {stack.attentions[0].shape}")
print(f"         {len(seen.decoder.cross_attentions)} x cross-attention {seen.decoder.cross_attentions[0].shape}")
assert equal(seen.logits, model(source, target))

# %% [markdown]
# ## 9. The loss: shifted labels, padding
#
# *Sections 3.1 and 5.4.* At each position the decoder reads the right answer so far and says the next token; being
# given the right past, whatever it would have said itself, is called **teacher forcing**. So the input is the answer
# shifted right by one, behind a start token, and the labels are the answer and an end token. Thanks to the causal mask
# all positions are trained in one pass. Where a row is over there is no label, and no loss.

# %%
row = example(task, task.text.read("3 1 4 1 5"))
names = {PAD: "pad", BOS: "start", EOS: "end", IGNORED: ""}


def label(token: int) -> str:
    """The token as people read it."""
    return names[token] if token in names else task.text.show(np.array([token]))


figure, (panel,) = panels(1, height=2.4)
for line, (name, colour) in enumerate({"source": GREY, "target": BLUE, "labels": ORANGE}.items()):
    for place, token in enumerate(row[name].tolist()):
        there = token not in (PAD, IGNORED)
        # fmt: off
        panel.text(place, -line, label(token), ha="center", va="center", color="black" if there else "0.7", fontsize=11,
                   bbox={"boxstyle": "round,pad=0.35", "fc": colour, "ec": "none", "alpha": 0.35 if there else 0.06})
        # fmt: on
        if name == "labels" and there:
            panel.annotate("", (place, -1.72), (place, -1.28), arrowprops={"arrowstyle": "->", "color": "0.5"})
    panel.text(
        -0.8,
        -line,
        {"source": "encoder reads", "target": "decoder reads", "labels": "decoder should say"}[name],
        ha="right",
        va="center",
    )
panel.set(xlim=(-3, 8.6), ylim=(-2.5, 0.5))
panel.set_axis_off()
show(figure, "Source, decoder input behind a start token, and labels one place to the left, ending in an end token.")

# %%
batch = jax.tree.map(jnp.asarray, {name: array[None] for name, array in row.items()})
logits = model(batch["source"], batch["target"], inputs_mask=batch["source"] != PAD)
print("loss per token:", np.asarray(jaxformer.token_cross_entropy(logits, batch["labels"])[0]))
count, mean = (batch["labels"] != IGNORED).sum(), jaxformer.cross_entropy(logits, batch["labels"])
print(f"mean over the {count} real labels: {mean:.3f}")
V = task.text.vocab_size
undecided = jaxformer.cross_entropy(jnp.zeros((1, 9, V)), batch["labels"])
print(f"equal chances for all tokens cost {undecided:.3f}, which is log V")
print("random weights are worse, being sure without reason")
assert math.isclose(undecided, math.log(V), rel_tol=1e-5)
smooth = jaxformer.cross_entropy(30 * jax.nn.one_hot(batch["labels"], V), batch["labels"], label_smoothing=0.1)
print(f"label smoothing asks for some doubt: being certain, and right, then costs {smooth:.3f}")

# %% [markdown]
# ## 10. Training
#
# *Section 5.3.* AdamW behind a clipped gradient; the learning rate climbs while the first gradients are wild and then
# descends. The step is one pure function from state and batch to state and metrics, compiled once. We stop twice on
# the way to keep a copy of the model, for comparisons later.

# %%
STEPS, WAYPOINTS = 500, (0, 60, 140, 500)
settings = OptimizerConfig(learning_rate=4e-3, warmup_steps=50)
optimizer = make_optimizer(settings, STEPS)


def answer_loss(model: Transformer, batch: Batch) -> jax.Array:
    """The mean cross-entropy of the right answers."""
    logits = model(batch["source"], batch["target"], inputs_mask=batch["source"] != PAD)
    return jaxformer.cross_entropy(logits, batch["labels"])


def step_for(graphdef: nnx.GraphDef) -> TrainStep:
    """The compiled training step of all models of one structure."""

    def loss_function(params: dict, batch: Batch, _: jax.Array) -> tuple[jax.Array, Loss]:
        loss = answer_loss(nnx.merge(graphdef, params), batch)
        return loss, Loss(loss, (batch["labels"] != IGNORED).sum())

    return make_train_step(loss_function, optimizer, learning_rates(settings, STEPS))


def train(
    model: Transformer, steps: int, step: TrainStep, spoil: Callable[[Batch], Batch] = lambda batch: batch
) -> tuple[dict[int, Transformer], list[Metrics]]:
    """Copies of the model at the waypoints, and the metrics of every step. spoil: a mistake to make with the data."""
    graphdef, params = nnx.split(model)
    # The step takes the memory of its state for the next one, so that it is given a copy, and copies are kept.
    state = init_state(jax.tree.map(jnp.copy, nnx.to_pure_dict(params)), optimizer, seed=0)
    batches, kept, course = training_batches(task, 64, seed=0), {0: model}, []
    for number in range(1, steps + 1):
        state, metrics = step(state, spoil(next(batches)))
        course.append(metrics)
        if number in WAYPOINTS:
            kept[number] = nnx.merge(graphdef, jax.tree.map(jnp.copy, state.params))
    return kept, jax.device_get(course)


step = step_for(nnx.graphdef(model))
models, course = train(model, STEPS, step)
for number in (1, *WAYPOINTS[1:]):
    print(f"step {number:3}: loss {course[number - 1].loss:.4f}")

# %%
generation = jaxformer.GenerationConfig(
    max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS, decoder_start_token_id=BOS
)
unseen = held_out(task, 200, seed=0)  # sequences that training never draws
right = {number: int(exact(kept, unseen, generation).sum()) for number, kept in models.items()}
for number, count in right.items():
    print(
        f"after {number:3} steps {count:3} of {len(unseen['source'])} unseen sequences are reversed without a mistake"
    )

figure, (curve, rates) = panels(2, height=2.8)
curve.plot([metrics.loss for metrics in course], color=BLUE)
curve.axhline(math.log(V), color=GREY, ls=":", label="log V: knows nothing")
for number in WAYPOINTS[1:]:
    curve.plot(number, course[number - 1].loss, "o", color=ORANGE)
    curve.annotate(f"{right[number] / len(unseen['source']):.0%} right", (number, course[number - 1].loss), (6, 14),
                   textcoords="offset points", ha="right" if number == STEPS else "left", color=ORANGE)  # fmt: skip
curve.set(yscale="log", title="loss [nats per token]", xlabel="step")
curve.legend()
rates.plot([metrics.learning_rate for metrics in course], color=GREEN)
rates.set(title="learning rate: warm-up, then half a cosine", xlabel="step")
for panel in (curve, rates):
    panel.grid(alpha=0.3)
show(figure, "The loss falls from that of a guess to nearly nothing; the learning rate rises, then falls.")

# %% [markdown]
# ## 11. What the trained model looks at
#
# *The paper's appendix shows such pictures of its own model.* To say a sequence backwards, look at its end first and
# walk to its start: an antidiagonal. Nobody told the model. Below is one unseen sequence, the mean over the heads of
# each layer, at the waypoints of training.

# %%
index = int(np.argmax([len(set(source.tolist()) - {PAD}) for source in unseen["source"]]))  # no symbol twice
length = int((unseen["source"][index] != PAD).sum())
source, target = (jnp.asarray(unseen[name][index : index + 1]) for name in ("source", "target"))
says, reads = ([label(token) for token in unseen[name][index].tolist()] for name in ("labels", "source"))
forward = jax.jit(lambda model: model(source, target, inputs_mask=source != PAD, return_intermediates=True))
looks = {
    number: [np.asarray(layer[0]) for layer in forward(kept).decoder.cross_attentions]
    for number, kept in models.items()
}

figure = Figure(figsize=(10, 5.2), layout="constrained")
grid = figure.subplots(2, len(WAYPOINTS))
for layer, line in enumerate(grid):
    for panel, number in zip(line, WAYPOINTS, strict=True):
        panel.imshow(looks[number][layer].mean(axis=0), vmin=0, vmax=1, cmap="magma_r")
        panel.set_xticks(range(length), reads)
        panel.set_yticks(range(length + 1), says)
        panel.set_title(f"layer {layer + 1}, step {number}")
figure.supxlabel("source")
figure.supylabel("about to say")
show(figure, "Cross-attention starts even and becomes an antidiagonal.")

# %%
title = "Cross-attention of the trained model, head by head"
figure = attention_figure(looks[STEPS], says, reads, title=title, query_label="about to say", key_label="source")
show(figure, "Two layers of four heads; several show a clear antidiagonal.")
for layer, heads in enumerate(looks[STEPS]):
    print(f"layer {layer + 1}: heads spread over", entropies(heads), f"bits, of log2 S = {math.log2(length):.0f}")

# %% [markdown]
# ## 12. Greedy decoding and beam search
#
# The decoder gives chances for the next token; decoding makes a sequence of them. **Greedy** takes the best token each
# time. By hand it is a short loop: read what was said, take the best token behind it, and say it too.

# %%
trained = models[STEPS]
forward = jax.jit(lambda model, said: model(source, said, inputs_mask=source != PAD))
said = np.full((1, 10), PAD)
said[0, 0] = BOS
for place in range(9):
    said[0, place + 1] = forward(trained, said)[0, place].argmax()  # causal: what stands behind `place` does not matter

found = jaxformer.generate(trained, source, generation, inputs_mask=source != PAD)
assert (found.sequences[0] == said[0, : found.sequences.shape[1]]).all()
print("source:  ", task.text.show(np.asarray(source[0])))
print("by hand: ", task.text.show(said[0]))
print(
    "library: ",
    task.text.show(found.sequences[0]),
    f"  probability of the whole sequence {math.exp(found.sequences_scores[0]):.4f}",
)

# %% [markdown]
# Greedy never looks back: a good first word may lead to poor ones. **Beam search** (*section 6.1*) keeps the few best
# beginnings at every step. Here is a model small enough to see all of it, a table that knows the next word from the
# last one. The decoding engine does not mind: it works for any function `step(tokens, cache) -> (logits, cache)`.

# %%
vocabulary = ["end", "it", "was", "is", "cold", "late", "dark", "raining"]
follows = {
    "it": {"was": 0.55, "is": 0.45},
    "was": {"cold": 0.4, "late": 0.35, "dark": 0.25},
    "is": {"raining": 0.9, "late": 0.1},
}
chances = np.full((len(vocabulary), len(vocabulary)), 1e-9, np.float32)
for word, nexts in follows.items():
    for other, chance in nexts.items():
        chances[vocabulary.index(word), vocabulary.index(other)] = chance
chances[4:, 0] = 1  # every other word ends the sentence


def next_word(logits: jax.Array, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
    """A language model without a memory: the row of the table that belongs to the last word."""
    return logits[tokens[:, -1]], cache


word_model = jax.tree_util.Partial(next_word, jnp.log(chances))
chosen = {}
for beams in (1, 2):
    words_found = jaxformer.decode(
        word_model, (), [[1]], max_new_tokens=3, eos_token_id=0, num_beams=beams, length_penalty=0.0
    )
    chosen[beams] = [vocabulary[token] for token in words_found.sequences[0]]
    chance = math.exp(words_found.sequences_scores[0])
    print(f"{beams} beam{'s' * (beams > 1)}: {' '.join(chosen[beams]):22} probability {chance:.3f}")

# %%
figure, (panel,) = panels(1, width=8, height=3.4)
leaves = [("was", "cold"), ("was", "late"), ("was", "dark"), ("is", "raining"), ("is", "late")]
places = {("it",): (0, 2.1), ("it", "was"): (1, 3), ("it", "is"): (1, 0.5)}
places |= {("it", *leaf): (2, 4 - index) for index, leaf in enumerate(leaves)}
marks = {tuple(chosen[1][:n]): RED for n in (2, 3)} | {tuple(chosen[2][:n]): BLUE for n in (2, 3)}
for path, (x, y) in places.items():
    panel.text(x, y, path[-1], ha="center", va="center", fontsize=11, zorder=3,
               bbox={"boxstyle": "round,pad=0.35", "fc": "white", "ec": marks.get(path, "0.7")})  # fmt: skip
    if len(path) > 1:
        (x0, y0), chance = places[path[:-1]], follows[path[-2]][path[-1]]
        panel.plot((x0, x), (y0, y), color=marks.get(path, "0.8"), lw=1 + 5 * chance, zorder=1)
        panel.text(0.45 * x0 + 0.55 * x, 0.45 * y0 + 0.55 * y, f"{chance:.2f}", fontsize=9, ha="center", va="center",
                   bbox={"fc": "white", "ec": "none", "pad": 1}, zorder=2)  # fmt: skip
    if len(path) == 3:
        whole = follows["it"][path[1]] * follows[path[1]][path[2]]
        panel.text(x + 0.3, y, f"together {whole:.3f}", va="center", color=marks.get(path, "0.5"))
panel.set(
    xlim=(-0.2, 3),
    ylim=(-0.4, 4.4),
    title="greedy (red) takes the better first word, two beams (blue) find the better sentence",
)
panel.set_axis_off()
show(figure, "A tree of sentences with the probability of each branch.")

# %% [markdown]
# A well trained model leaves greedy little to miss, so let us ask the one that we kept early in training. Each point
# below is an unseen sequence: how probable the model finds what greedy and what four beams came up with.

# %%
early = models[WAYPOINTS[2]]
mask = unseen["source"] != PAD
ways = {beams: generation.replace(num_beams=beams, length_penalty=0.0) for beams in (1, 4)}
logs = {
    beams: jaxformer.generate(early, unseen["source"], way, inputs_mask=mask).sequences_scores
    for beams, way in ways.items()
}
for beams, way in ways.items():
    count = exact(early, unseen, way).sum()
    print(f"beams {beams}: {count} of {len(mask)} right, mean log-probability {logs[beams].mean():.3f}")
better, equally = (int(x.sum()) for x in (logs[4] > logs[1] + 1e-4, np.abs(logs[4] - logs[1]) <= 1e-4))
worse = len(mask) - better - equally
print(f"four beams find something more probable for {better}, the same for {equally}, worse for {worse}")

figure, (panel,) = panels(1, width=4.6, height=4)
panel.plot(logs[1], logs[4], "o", ms=4, alpha=0.5, color=BLUE)
panel.plot(*[[min(logs[1]), 0]] * 2, ":", color=GREY)
panel.set(
    xlabel="log-probability of greedy's sequence",
    ylabel="... of four beams'",
    title="above the line: beam search found better",
)
panel.grid(alpha=0.3)
show(figure, "Points on or above the diagonal.")

# %% [markdown]
# ## 13. The cache
#
# The loop by hand computed everything again for every token. But the past does not see the future, so keys and values
# of the past never change: keep them. This library has one forward path, which *extends a cache*: training extends an
# empty one by all tokens at once, generating extends it token by token, and the answers are the same.

# %%
extend = jax.jit(lambda model, token, cache: model.extend(token, cache))
encoded = trained.encode(source, mask=source != PAD)
cache = trained.init_cache(1, target.shape[1], encoded=encoded, encoded_mask=source != PAD)
pieces, fillings = [], []
for place in range(target.shape[1]):
    hidden, cache = extend(trained, target[:, place : place + 1], cache)
    pieces.append(trained.logits(hidden))
    keys, values = cache.layers[0].unpack()  # of the first layer, [batch, slots, heads, width]
    fillings.append(np.linalg.norm(keys[0], axis=(1, 2)))  # of every slot, over heads and widths

assert equal(jnp.concatenate(pieces, axis=1), trained(source, target, inputs_mask=source != PAD))
print("each layer remembers keys", keys.shape, "and values", values.shape)
print("and of the source, computed once, keys", cache.cross[0].unpack()[0].shape)

figure, (left, right) = panels(2, height=3)
image = left.imshow(fillings, cmap="Blues", vmin=0)
left.set(title="the cache fills slot by slot", xlabel="slot", ylabel="step")
figure.colorbar(image, ax=left, label="length of the keys")
lengths = np.arange(1, 101)
right.plot(lengths, lengths * (lengths + 1) / 2, color=RED, lw=2, label="everything again for each token")
right.plot(lengths, lengths, color=BLUE, lw=2, label="with a cache")
right.set(title="positions that pass through the model", xlabel="tokens generated")
right.grid(alpha=0.3)
right.legend()
show(figure, "Left: one more slot of the cache is filled at each step. Right: quadratic against linear work.")

# %% [markdown]
# ## 14. A decoder-only model, shape by shape
#
# A language model is the decoder alone, without cross-attention: it continues what it reads. Here is its forward pass
# with nothing left out, on two lines of text, one character a token. All sizes differ, so that no two axes can be
# confused.

# %%
lines = ["to be or", "not to b"]
tokenizer = train_tokenizer("char", lines, vocab_size=64)
tokens = jnp.asarray(np.stack([tokenizer.encode(line) for line in lines]))
language = jaxformer.decoder_only(tokenizer.vocab_size, length=16, dim=20, layers=2, heads=5)
speaker = Transformer(language, rngs=nnx.Rngs(2))
show(
    graph_figure(language),
    "A decoder-only model: embedding, positions, two pre-norm blocks, a last norm, logits.",
    dpi=70,
)


def look(name: str, axes: str, x: jax.Array) -> jax.Array:
    """Print the shape of x and hand it on."""
    print(f"{name:44} {axes:14} {list(x.shape)}")
    return x


# %%
T = tokens.shape[1]
look("tokens", "[B, T]", tokens)
x = look("their rows of the embedding table", "[B, T, D]", speaker.embedding.embedding[...][tokens])
x = look("+ a vector per position", "[B, T, D]", x + speaker.decoder.positions.embedding[...][:T])
stream = [x]
for number, block in enumerate(speaker.decoder.blocks, start=1):
    print(f"block {number}")
    states = look("  layer norm", "[B, T, D]", block.attention_norm(x))
    query = look("  queries", "[B, T, N, H]", block.attention.query(states))
    key = look("  keys", "[B, S, N, H]", block.attention.key(states))
    value = look("  values", "[B, S, N, H]", block.attention.value(states))
    scores = attention_scores(query, key, mask=AttentionMask(causal=True))
    scores = look("  scores, the future at minus infinity", "[B, N, T, S]", scores)
    weights = look("  softmax over S", "[B, N, T, S]", jax.nn.softmax(scores))
    heads = look("  values averaged by these weights", "[B, T, N, H]", weighted_values(weights, value))
    change = look("  heads joined by the output projection", "[B, T, D]", block.attention.output(heads))
    x = look("  residual sum", "[B, T, D]", x + change)
    inner = look(
        "  layer norm, up, GELU",
        "[B, T, F]",
        jax.nn.gelu(block.feed_forward.up(block.feed_forward_norm(x)), approximate=False),
    )
    x = look("  down, residual sum", "[B, T, D]", x + block.feed_forward.down(inner))
    stream.append(x)
x = look("last layer norm", "[B, T, D]", speaker.decoder.final_norm(x))
logits = look("times the embedding table, transposed", "[B, T, V]", x @ speaker.embedding.embedding[...].T)
chances = look("softmax over V: chances of the next token", "[B, T, V]", jax.nn.softmax(logits))
loss = jaxformer.cross_entropy(logits[:, :-1], tokens[:, 1:])
print(f"loss {loss:.3f}: each position is asked for the character behind it")
print(f"equal chances for all would cost {math.log(tokenizer.vocab_size):.3f}")
assert equal(logits, speaker(tokens))

# %%
figure, axes = panels(4, width=11, height=3)
seen = speaker(tokens, return_intermediates=True).decoder
shown = tokenizer.names(tokens[0])
for panel, states, title in zip(axes, stream, ("embedding + position", "after block 1", "after block 2"), strict=False):
    panel.imshow(states[0], cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    panel.set(title=title, xlabel="D", yticks=range(T), yticklabels=shown)
axes[3].imshow(seen.attentions[1][0].mean(axis=0), cmap="magma_r", vmin=0, vmax=1)
axes[3].set(title="block 2: who looks where", xticks=range(T), xticklabels=shown, yticks=range(T), yticklabels=shown)
show(figure, "The residual stream of one line after each block, and a causal attention map.")

# %% [markdown]
# ## 15. Smaller caches, more parameters: latent attention and experts
#
# Two ideas of today's large models, here as DeepSeek has them. The first is about the cache: it holds the keys and
# values of all heads for every token, and in a long text that is more than the weights. **Latent attention**
# (DeepSeek-V2, section 2.1) keeps one short vector per token, its *latent*, from which the keys and values of all
# heads are made by linear maps. Rotary positions cannot be undone behind such a map, so one key that all heads share,
# and that alone knows positions, is kept beside it.

# %%
narrow = LatentAttentionConfig(heads=8, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, rope=Rope())
latents = LatentAttention(narrow, 64, rngs=nnx.Rngs(4))
sentence = jax.random.normal(jax.random.key(12), (1, 20, 64))
at = jnp.arange(20)[None]
kept = latents.project_kv(sentence, at).unpack()
latent, shared = kept[..., :24], kept[..., 24:]
print("kept of 20 tokens:", kept.shape, "where keys and values of all heads are", (1, 20, 8 * (16 + 8 + 16)))

# Either make keys and values of every head, and attend as in section 4 ...
expanded = latents(sentence, mask=past, absorbed=False).states
# ... or move the maps to the other side, q . (W c) = (W^T q) . c, so that all heads attend to the latents themselves.
absorbed = latents(sentence, mask=past, absorbed=True).states
assert equal(expanded, absorbed)
print("all tokens at once are cheaper expanded:", not latents.absorbs(queries=20, slots=20))
print("the next token is cheaper absorbed:     ", latents.absorbs(queries=1, slots=20))

figure, (left, right) = panels(2, height=3)
every = jnp.concatenate(
    [latents.key(latent), jnp.broadcast_to(shared[:, :, None], (1, 20, 8, 8)), latents.value(latent)], -1
)
picture = np.full((20, 8 * 40 + 12 + 32), np.nan)  # both with a gap between them
picture[:, : 8 * 40], picture[:, 8 * 40 + 12 :] = every[0].reshape(20, -1), kept[0]
left.imshow(picture, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto")
left.set(title="keys and values of 8 heads   |   what is kept", xlabel="numbers", ylabel="token", yticks=[0, 19])
bytes_of = {
    "plain heads": 2 * 8 * 16,
    "4 heads to a key": 2 * 2 * 16,
    "latent, expanded": 8 * (16 + 8 + 16),
    "kv_lora_rank": 24 + 8,
}
right.barh(list(bytes_of), [4 * count for count in bytes_of.values()], color=[GREY, GREY, ORANGE, BLUE])
right.bar_label(right.containers[0], padding=3)
right.invert_yaxis()
right.margins(x=0.12)
right.set(title="bytes of the cache per token and layer")
show(
    figure,
    "Left: a wide picture of all heads' keys and values beside the narrow one of latents. Right: bytes per token.",
)

# %% [markdown]
# The second idea is about parameters. A feed-forward network is most of a layer, and all of it works on every token.
# In a **mixture of experts** (Shazeer et al. 2017) a layer has many smaller networks and a *router*, one linear map
# that scores them for each token; only the best few are computed. Left alone, routers love a few experts and forget
# the rest. DeepSeek-V3 balances them without a loss: a correction per expert, which only the choice sees, goes down
# where the load was too high and up where it was too low (section 2.1.2). Two small models, trained alike on the
# same text but for that:

# %%
prose = "\n".join(documents(None))[:60_000]
letters = train_tokenizer("char", [prose], vocab_size=128)
symbols = letters.encode(prose)
kinds = {"vowels": "aeiou", "other letters": "bcdfghjklmnpqrstvwxyz", "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
kinds |= {"digits": "0123456789", "spaces": " ", "line ends": "\n", "the rest": ""}
one = FeedForwardConfig(32, "silu", gated=True, bias=False)
plain = jaxformer.modern_decoder_only(letters.vocab_size, dim=32, layers=2, heads=4, kv_heads=4)
sparse = dataclasses.replace(plain.decoder.blocks[0], feed_forward=MoEConfig(8, 2, one, SigmoidRouter(), shared=one))
layers = dataclasses.replace(plain.decoder, blocks=(plain.decoder.blocks[0], sparse))
student = Transformer(dataclasses.replace(plain, decoder=layers), rngs=nnx.Rngs(3))
graphdef, untaught = nnx.split(student)


def reading_loss(params: dict, batch: jax.Array, _: jax.Array) -> tuple[jax.Array, Loss]:
    """The loss of predicting the next character, and the share of tokens that each expert heard."""
    seen = nnx.merge(graphdef, params)(batch[:, :-1], return_intermediates=True)
    loss = jaxformer.cross_entropy(seen.logits, batch[:, 1:])
    return loss, Loss(loss, jnp.int32(batch[:, 1:].size), {1: expert_load(seen.decoder.routing[1].experts, 8)})


draws = np.random.default_rng(0).integers(0, len(symbols) - 33, (300, 16))
loads, readers = {}, {}
for speed in (0.0, 0.01):
    pace = OptimizerConfig(learning_rate=5e-3, warmup_steps=20)
    adam = make_optimizer(pace, 300)
    adjust = partial(update_router_biases, speed=speed)
    learn = make_train_step(reading_loss, adam, learning_rates(pace, 300), adjust=adjust)
    learner, busy = init_state(jax.tree.map(jnp.copy, nnx.to_pure_dict(untaught)), adam, 0), []
    for places in draws:
        learner, metrics = learn(learner, jnp.asarray(np.stack([symbols[place : place + 33] for place in places])))
        busy.append(metrics.loads[1])
    loads[speed], readers[speed] = np.stack(busy) * 8, nnx.merge(graphdef, learner.params)
    print(f"correction by {speed}: loss {metrics.loss:.2f}, busiest expert {loads[speed][-50:].mean(0).max():.2f} "
          f"times the mean load, idlest {loads[speed][-50:].mean(0).min():.2f}")  # fmt: skip

# %%
window = jnp.asarray(symbols[: 64 * 32].reshape(64, 32))
chosen = np.asarray(readers[0.01](window, return_intermediates=True).decoder.routing[1].experts)
characters = np.array(list(prose[: 64 * 32])).reshape(64, 32)
heard = np.zeros((len(kinds), 8))
for row, members in enumerate(kinds.values()):
    of_kind = np.isin(characters, list(members)) if members else ~np.isin(characters, list("".join(kinds.values())))
    heard[row] = np.bincount(chosen[of_kind].ravel(), minlength=8) / max(1, chosen[of_kind].size)

figure, (left, middle, right) = panels(3, width=11, height=3.2)
for panel, (speed, load) in zip((left, middle), loads.items(), strict=True):
    panel.imshow(load.T, aspect="auto", vmin=0, vmax=3, cmap="viridis")
    panel.set(title=f"load, {'corrected' if speed else 'left alone'}", xlabel="step", ylabel="expert")
image = right.imshow(heard, cmap="Blues", vmin=0, vmax=0.6, aspect="auto")
right.set(title="where tokens go", xlabel="expert", yticks=range(len(kinds)), yticklabels=list(kinds))
figure.colorbar(image, ax=right, label="share of a kind")
show(figure, "Left: a few experts take all tokens. Middle: all are as busy. Right: kinds of characters prefer experts.")

# %% [markdown]
# ## 16. Seven common bugs, and the tests that catch them
#
# None of these crashes, all have the right shapes, and most of them learn something, which is what makes them
# expensive. For each: the wrong code, what one would notice (the symptom), and the *law* that right code obeys and the
# bug does not, with the test of this library that holds it. First the four that live in the forward pass.

# %%
T, N, H = 8, 4, 64
asked, offered, held = jax.random.normal(jax.random.key(8), (3, 1, T, N, H))
visible = jaxformer.causal_mask(T)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, bug: str = "") -> jax.Array:
    """Causal attention by hand, [B, T, N, H] -> [B, T, N, H], with one of three mistakes."""
    if bug == "transposed heads":  # reshaped to heads first, where axes had to be exchanged
        query, key, value = (x.reshape(1, N, T, H) for x in (query, key, value))
    else:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = query @ key.swapaxes(2, 3) * (1 if bug == "unscaled scores" else H**-0.5)
    if bug == "mask after the softmax":
        weights = jax.nn.softmax(scores) * visible
    else:
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
    return (weights @ value).swapaxes(1, 2)


def leak(attention: Callable[..., jax.Array]) -> float:
    """How far outputs at earlier positions move when the last token changes. The law of causality says: not at all."""
    changed = [x.at[:, -1].add(1) for x in (asked, offered, held)]
    return float(np.abs(attention(*changed) - attention(asked, offered, held))[:, :-1].max())


print(f"{'':24} {'largest error':>14} {'future leaks':>13} {'first token keeps':>18}")
right_answer = dot_product_attention(asked, offered, held, mask=past)
for bug in ("", "unscaled scores", "mask after the softmax", "transposed heads"):
    attention_with = partial(attend, bug=bug)
    found = attention_with(asked, offered, held)
    kept_share = float((found[0, 0] * held[0, 0]).sum() / (held[0, 0] ** 2).sum())
    error = float(np.abs(found - right_answer).max())
    print(f"{bug or 'right':24} {error:14.4f} {leak(attention_with):13.4f} {kept_share:18.3f}")
    assert (error < 1e-5) == (bug == "")
    assert (leak(attention_with) == 0) == (bug in ("", "unscaled scores"))

# %% [markdown]
# **1. Unscaled scores.** *Symptom:* it trains, slowly and worse the wider the heads are; maps show one bright cell per
# row from the first step on (section 2). Causality is intact, so only a comparison finds it. *Test:*
# `tests/ops/test_attention.py::test_the_scale_is_one_over_the_root_of_the_key_width`.
#
# **2. Mask after the softmax.** *Symptom:* rows no longer sum to one; the first token keeps a fraction of its value,
# because the hidden keys took their share before they were hidden. They also still sit in the denominator: the future
# leaks. *Tests:* `tests/parity/test_torch_attention.py::test_outputs_and_weights_equal_torch`,
# `tests/test_model.py::test_a_future_token_changes_no_earlier_logit`.
#
# **3. Transposed heads.** `reshape` where `swapaxes` was meant: each "head" is then a stretch of positions. *Symptom:*
# the training loss of a language model falls suspiciously low, since the mask no longer means what it says, and
# generated text is nonsense. *Test:* the same two; causality breaks most visibly. This library never reshapes
# positions and heads into one another: a projection goes from `D` to `(N, H)` by its own shape.

# %% [markdown]
# **4. A missing residual.** Set the projections that end a block's two sub-layers to zero: what is left of a block is
# the path around them, so it has to hand on its input as it came.

# %%
block = make_blocks("pre")[0]
silent = nnx.merge(*nnx.split(block))
silent.attention.output.weight[...] = jnp.zeros_like(block.attention.output.weight[...])
silent.feed_forward.down.weight[...] = jnp.zeros_like(block.feed_forward.down.weight[...])
print(
    "silent sub-layers, with residuals:    output - input is at most",
    np.abs(library_block(silent, start) - start).max(),
)
without = block_by_hand(silent, start, residual=False, norm=True)
print("silent sub-layers, without residuals: the output is at most    ", np.abs(without).max())
assert (library_block(silent, start) == start).all()
assert (without == 0).all()

# %% [markdown]
# *Symptom:* a shallow model trains, only worse; a deep one stops above the loss of a guess that ignores the input, for
# all its positions look alike (section 7). *Tests:*
# `tests/parity/test_torch_transformer.py::test_logits_and_loss_agree` (a layer of PyTorch with the same weights says
# something else) and `tests/test_model.py::test_every_parameter_learns_except_key_biases`.
#
# The other three live outside the layers: two in the data and one in what counts as a parameter. They show in
# training, so let us train with each, as in section 10 and from the same weights.


# %%
def unshifted(batch: Batch) -> Batch:
    """Labels that stand where the decoder reads them, instead of one place before."""
    return batch | {"labels": np.where(batch["target"] == PAD, IGNORED, batch["target"])}


def padded(batch: Batch) -> Batch:
    """Padding counts as tokens to be predicted."""
    return batch | {"labels": np.where(batch["labels"] == IGNORED, PAD, batch["labels"])}


LENGTH = 10
formula = jaxformer.sinusoidal_positions(LENGTH, 64)
encoder, decoder = (
    dataclasses.replace(stack, positions=LearnedPositions(length=LENGTH)) for stack in (config.encoder, config.decoder)
)
adrift = Transformer(dataclasses.replace(config, encoder=encoder, decoder=decoder), rngs=nnx.Rngs(0))
for stack in (adrift.encoder, adrift.decoder):
    stack.positions.embedding[...] = formula  # the right numbers, in the wrong place: a parameter

SHORT = WAYPOINTS[2]
wrong = {
    "unshifted labels": train(model, SHORT, step, unshifted),
    "padded loss": train(model, SHORT, step, padded),
    "positions as parameters": train(adrift, SHORT, step_for(nnx.graphdef(adrift))),
}
trials = {"right": (models[SHORT], course[:SHORT])}
trials |= {bug: (kept[SHORT], metrics) for bug, (kept, metrics) in wrong.items()}
solved = {bug: float(exact(kept, unseen, generation).mean()) for bug, (kept, _) in trials.items()}
print(f"{f'after {SHORT} steps':24} {'loss shown':>11} {'unseen sequences right':>23}")
for bug, (_, metrics) in trials.items():
    print(f"{bug:24} {metrics[-1].loss:11.4f} {solved[bug]:23.0%}")

# %%
figure, (losses, table_of_positions) = panels(2, height=3.2)
for (bug, (_, metrics)), colour in zip(trials.items(), (BLUE, RED, ORANGE, GREEN), strict=True):
    losses.plot([step.loss for step in metrics], color=colour, lw=2, label=f"{bug}: {solved[bug]:.0%} right")
losses.set(yscale="log", title="the loss that is shown [nats per token]", xlabel="step")
losses.grid(alpha=0.3)
losses.legend(fontsize=8)
drift = trials["positions as parameters"][0].decoder.positions.embedding[...] - formula
image = table_of_positions.imshow(drift, cmap="RdBu_r", aspect="auto", vmin=-0.5, vmax=0.5)
table_of_positions.set(title="positions as parameters: drift from the formula", xlabel="D", ylabel="position")
figure.colorbar(image, ax=table_of_positions)
show(
    figure,
    "Left: unshifted labels have the lowest loss of all and solve nothing. Right: the table of positions has moved.",
)

# %% [markdown]
# **5. Unshifted labels.** *Symptom:* the most beautiful loss curve of your life, and not one right answer: the model
# was asked to repeat what it reads. *Law:* the label at a place is what the decoder reads at the next one. *Tests:*
# `tests/tasks/test_sequences.py::test_teacher_forcing_is_shifted_by_one`, and for text
# `tests/data/test_windows.py::test_labels_are_the_tokens_behind`.
#
# **6. Padded loss.** *Symptom:* the loss looks better than it is, because "padding follows padding" is learned at once
# and then counts as success: it depends on how long the longest row of the batch happens to be. *Law:* more padding
# changes no loss. *Test:* `tests/ops/test_losses.py::test_ignored_tokens_change_nothing`.
#
# **7. Positions as parameters.** The paper's sinusoids, put where the optimiser finds them. *Symptom:* here, none in
# the loss, which is why it stays in so much code. But the table drifts from the formula, rows beyond the lengths of
# training are never trained, and a longer input does not fit at all. *Law:* sinusoids are computed: a model has no
# parameters for them, and any length works. *Test:* `tests/test_model.py::test_sinusoids_are_no_parameters`.

# %%
row = next(training_batches(task, 4, seed=1))
assert np.array_equal(np.where(row["labels"] == EOS, PAD, row["labels"])[:, :-1].clip(0), row["target"][:, 1:])
assert not np.array_equal(unshifted(row)["labels"][:, :-1].clip(0), row["target"][:, 1:])

for name, counted in {"right": row, "padded loss": padded(row)}.items():
    longer = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 6)), constant_values=PAD), counted)
    longer["labels"][:, -6:] = IGNORED if name == "right" else PAD
    before, after = answer_loss(trained, counted), answer_loss(trained, longer)
    print(f"{name}: loss {before:.4f}, with six more columns of padding {after:.4f}")

extra = parameters(adrift) - parameters(model)
print(f"positions as parameters: {extra:,} more of them, 2 tables x {LENGTH} positions x 64")
assert extra == 2 * formula.size
longest = jnp.full((1, 50), task.text.read("7")[0])
print("any length with the formula:", model(longest, longest).shape)
print("with a table, is a number:", np.isfinite(adrift(longest, longest)).all())  # rows that do not exist are NaN

# %% [markdown]
# ## Where to go from here
#
# `python train.py --task copy` trains the larger sibling of this model, and `python train.py --task lm --data
# book.txt` the decoder-only model of section 14 on any text; `python -m jaxformer visualize` shows what either looks
# at. The code behind each section is a file of its own: `jaxformer/ops` for sections 1 to 6 and 9, `layers` for 4 to
# 7 and 15, `model.py` for 8 and 14, `train` for 10, `visualize` for 11, and `decode` for 12 and 13. `python train.py
# --task lm --preset deepseek-tiny` trains a model with both ideas of section 15.
