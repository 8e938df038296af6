"""A picture of what a model consists of, as figure 1 of the paper draws it: boxes, arrows, residual paths, shapes."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from jaxformer.config import (
    AlibiPositions,
    AnyAttentionConfig,
    AnyClassifierConfig,
    BlockConfig,
    ClassifierConfig,
    DiscriminatorConfig,
    EndOfText,
    FeedForwardConfig,
    HeadConfig,
    LastToken,
    LatentAttentionConfig,
    LearnedPositions,
    MoEConfig,
    NormConfig,
    NormOrder,
    Positions,
    RelativePositions,
    SinusoidalPositions,
    SpanConfig,
    StackConfig,
    TransformerConfig,
    head_width,
)

EMBEDDING, ATTENTION, FEED_FORWARD, NORM, HEAD = "#f9dcd9", "#fce3bd", "#cfe6f5", "#f3f2c4", "#dedcf0"
FRAME, INK, SOFT = "#f4f3f1", "#2b2830", "#77727f"
# All in inches.
WIDTH, HEIGHT, LINE = 2.9, 0.3, 0.17  # a box of one line of text, and each further line
GAP = 0.3  # an arrow between two boxes
DETOUR = 0.28  # how far outside the boxes a residual path runs
DISTANCE = 5.0  # between the middles of encoder and decoder


@dataclass(frozen=True)
class Box:
    """A labelled box.

    Attributes:
        label: Name of the part that it stands for.
        details: Smaller lines below the label.
        colour: Fill colour.
    """

    label: str
    details: tuple[str, ...]
    colour: str

    @property
    def height(self) -> float:
        """Inches from its bottom to its top."""
        return HEIGHT + LINE * len(self.details)


@dataclass(frozen=True)
class SubLayer:
    """A function with a residual path around it.

    Attributes:
        box: The function.
        norm: Its norm.
        norm_order: Where the norm is, see `BlockConfig`.
        sees_source: Whether it also reads the encoder's output.
    """

    box: Box
    norm: Box
    norm_order: NormOrder
    sees_source: bool = False


def graph_figure(config: TransformerConfig) -> Figure:
    """Draw the layers of any model with the shapes between them, bottom to top, equal layers drawn once.

    An encoder stands to the left of its decoder (section 3, figure 1).
    """
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    pens = []
    if config.encoder:
        pens.append(draw_stack(Pen(axes, 0.0, side=-1), config, config.encoder, "S"))
    if config.decoder:
        pens.append(draw_stack(Pen(axes, DISTANCE * bool(config.encoder), side=1), config, config.decoder, "T"))
    if config.encoder and config.decoder:
        draw_source(*pens)
    draw_head(pens[-1], config)
    left, right = pens[0].x - WIDTH / 2 - 1.1, pens[-1].x + WIDTH / 2 + 1.1
    bottom, top = -0.75, max(pen.y for pen in pens) + 0.35
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    figure.set_size_inches(right - left, top - bottom)
    return figure


@dataclass
class Pen:
    """Place of the drawing of a stack: a column that grows upwards.

    Attributes:
        axes: Axes to draw in, whose unit is an inch.
        x: Middle of the column.
        side: Side of the residual paths: -1 left, 1 right.
        y: Height that the drawing has reached.
        entries: Points (x, y) where the encoder's output comes in.
    """

    axes: Axes
    x: float
    side: int
    y: float = 0.0
    entries: tuple[tuple[float, float], ...] = ()

    def text(self, text: str, x: float, y: float, *, size: float = 8, colour: str = SOFT, **settings: Any) -> None:
        """Write at a point; tokens and names are never mathematics."""
        self.axes.text(x, y, text, fontsize=size, color=colour, va="center", parse_math=False, **settings)

    def arrow(self, *points: tuple[float, float], head: bool = True) -> None:
        """Draw a line through the points, with a head at its end."""
        for start, end in itertools.pairwise(points):
            last = head and end == points[-1]
            style = "-|>,head_width=1.6,head_length=3" if last else "-"
            self.axes.add_patch(
                FancyArrowPatch(
                    start, end, arrowstyle=style, color=INK, linewidth=1, shrinkA=0, shrinkB=0, capstyle="round"
                )
            )

    def climb(self, shape: str = "", *, head: bool = True) -> None:
        """Draw an arrow upwards, with the shape of what flows along it."""
        length = GAP + 0.12 * bool(shape)
        self.arrow((self.x, self.y), (self.x, self.y + length), head=head)
        self.text(shape, self.x + 0.1, self.y + length / 2, size=7.5, family="monospace")
        self.y += length

    def box(self, box: Box) -> None:
        """Draw a box above what is there."""
        self.frame(self.x - WIDTH / 2, self.y, WIDTH, box.height, box.colour, 0.06, INK)
        top = self.y + box.height - HEIGHT / 2
        self.text(box.label, self.x, top - 0.01, size=9.5, colour=INK, ha="center")
        for number, detail in enumerate(box.details, 1):
            self.text(detail, self.x, top - LINE * number - 0.02, size=7.5, colour="#4b4652", ha="center")
        self.y += box.height

    def plus(self) -> float:
        """Draw a sum above what is there; returns the height of its middle."""
        middle = self.y + 0.11
        self.axes.add_patch(Circle((self.x, middle), 0.11, facecolor="white", edgecolor=INK, linewidth=1, zorder=3))
        self.text("+", self.x, middle, size=11, colour=INK, ha="center", zorder=4)
        self.y += 0.22
        return middle

    def frame(self, x: float, y: float, width: float, height: float, face: str, rounding: float, edge: str) -> None:
        """Draw a rectangle with round corners; pale ones lie below all else."""
        style = f"round,pad=0,rounding_size={rounding}"
        below = 0 if face == FRAME else 2
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=0.9, zorder=below
            )
        )


def draw_stack(pen: Pen, config: TransformerConfig, stack: StackConfig, length: str) -> Pen:
    """Draw tokens, embedding, positions, layers, final norm; the pen then stands above the stack's output."""
    role = "source tokens" if length == "S" and config.decoder else "tokens"
    role = "target tokens, shifted right" if length == "T" and config.encoder else role
    states = f"[B, {length}, {config.dim}]"
    pen.text(role, pen.x, -0.5, size=9.5, colour=INK, ha="center")
    pen.text(f"[B, {length}]", pen.x, -0.28, size=7.5, ha="center", family="monospace")
    pen.y = -0.17
    pen.climb()
    pen.box(embedding_box(stack, config))
    if stack.positions is not None:
        pen.climb(states)
        middle = pen.plus()
        start = pen.x + pen.side * 0.75
        pen.arrow((start, middle), (pen.x + pen.side * 0.11, middle))
        pen.text(
            positions_text(stack.positions),
            start + pen.side * 0.07,
            middle,
            colour=INK,
            ha="left" if pen.side > 0 else "right",
        )
    if stack.embedding_norm:
        pen.climb()
        pen.box(norm_box(stack.embedding_norm))
    for blocks, count in folded(stack.applied):
        pen.climb(states)
        bottom = pen.y
        for sub_layer in itertools.chain.from_iterable(sub_layers(block, config, length) for block in blocks):
            draw_sub_layer(pen, sub_layer)
        pen.y += 0.12
        pen.arrow((pen.x, pen.y - 0.12), (pen.x, pen.y), head=False)
        half = WIDTH / 2 + DETOUR + 0.14
        pen.frame(pen.x - half, bottom, 2 * half, pen.y - bottom, FRAME, 0.12, "#bcb8c2")
        if count > 1:
            edge = pen.x + pen.side * (half + 0.14)
            align = "left" if pen.side > 0 else "right"
            pen.text(f"\u00d7 {count}", edge, (bottom + pen.y) / 2, size=13, colour=INK, ha=align)
    if stack.final_norm:
        pen.climb(states)
        pen.box(norm_box(stack.final_norm))
    pen.climb(states, head=stack is config.main)
    return pen


def draw_sub_layer(pen: Pen, sub_layer: SubLayer) -> None:
    """Draw a sub-layer with its residual path, and its norm before it, after it or after the sum."""
    pen.climb(head=False)
    fork = pen.y - 0.14
    pen.arrow((pen.x, pen.y - 0.01), (pen.x, pen.y))
    if sub_layer.norm_order in ("pre", "pre_and_post"):
        pen.box(sub_layer.norm)
        pen.climb()
    if sub_layer.sees_source:
        pen.entries += ((pen.x - WIDTH / 2, pen.y + sub_layer.box.height / 2),)
    pen.box(sub_layer.box)
    pen.climb()
    if sub_layer.norm_order in ("post_sublayer", "pre_and_post"):
        pen.box(sub_layer.norm)
        pen.climb()
    middle = pen.plus()
    outside = pen.x + pen.side * (WIDTH / 2 + DETOUR)
    pen.arrow((pen.x, fork), (outside, fork), (outside, middle), (pen.x + pen.side * 0.11, middle))
    if sub_layer.norm_order == "post":
        pen.climb()
        pen.box(sub_layer.norm)


def draw_source(encoder: Pen, decoder: Pen) -> None:
    """Draw the encoder's output on its way into each cross-attention of the decoder."""
    turn = (encoder.x + decoder.x) / 2
    for entry in decoder.entries:
        encoder.arrow((encoder.x, encoder.y), (turn, encoder.y), (turn, entry[1]), entry)
    top = max(encoder.y, *(y for _, y in decoder.entries))
    encoder.text("keys and values", turn, top + 0.14, ha="center")


def draw_head(pen: Pen, config: TransformerConfig) -> None:
    """Draw the way from hidden states to logits, where the model has a head."""
    length = "T" if config.decoder else "S"
    if config.head is None:
        pen.text("hidden states", pen.x, pen.y + 0.14, size=9.5, colour=INK, ha="center")
        return
    if isinstance(config.head, DiscriminatorConfig):
        pen.box(Box("Discriminator", (f"{config.dim} \u2192 {config.dim} \u2192 1",), HEAD))
        pen.climb(f"[B, {length}]")
    elif isinstance(config.head, AnyClassifierConfig):
        head = config.head
        widths = [config.dim] * (1 if head.activation is None else 2) + [head.classes]
        way = " \u2192 ".join(map(str, widths))
        pen.box(Box("Classifier", (f"{classified(head)}, {way}",), HEAD))
        pen.climb(f"[B, {head.classes}]" if isinstance(head, ClassifierConfig) else f"[B, {length}, {head.classes}]")
    else:
        vocabulary = config.main.embedding.vocab_size
        pen.box(head_box(config.head, config.dim, vocabulary))
        pen.climb(f"[B, {length}, {vocabulary}]")
    pen.text("logits", pen.x, pen.y + 0.14, size=9.5, colour=INK, ha="center")


def classified(head: AnyClassifierConfig) -> str:
    """Return what a classifier reads, in words."""
    match head:
        case ClassifierConfig(pooled=LastToken()):
            return "of the last token"
        case ClassifierConfig(pooled=EndOfText()):
            return "of the end of the text"
        case ClassifierConfig(pooled="first"):
            return "of the first token"
        case ClassifierConfig():
            return "of the mean of the tokens"
        case SpanConfig():
            return "begin and end of an answer"
        case _:
            return "of each token"


def folded(blocks: tuple[BlockConfig, ...]) -> list[tuple[tuple[BlockConfig, ...], int]]:
    """Return layers that repeat, and how often.

    The whole stack as one pattern if it is one, else runs of equal layers.
    """
    L = len(blocks)
    for period in range(1, L // 2 + 1):
        if L % period == 0 and blocks[:period] * (L // period) == blocks:
            return [(blocks[:period], L // period)]
    return [((block,), len(list(run))) for block, run in itertools.groupby(blocks)]


def sub_layers(block: BlockConfig, config: TransformerConfig, length: str) -> list[SubLayer]:
    """Return the sub-layers of a layer, in order."""
    name = "Self-attention" if length == "S" else "Causal self-attention"
    norm, norm_order = norm_box(block.norm), block.norm_order
    found = [SubLayer(attention_box(block.attention, name, config.dim, length, length), norm, norm_order)]
    if block.cross:
        box = attention_box(block.cross, "Cross-attention", config.dim, length, "S")
        found.append(SubLayer(box, norm, norm_order, sees_source=True))
    box = feed_forward_box(block.feed_forward, config.dim)
    if block.parallel:
        what = "what attention reads" + ", through its norm" * block.shared_norm
        box = replace(box, details=(*box.details, f"reads {what}"))
    return [*found, SubLayer(box, norm, norm_order)]


def attention_box(config: AnyAttentionConfig, label: str, dim: int, queries: str, keys: str) -> Box:
    """Return heads, their width, the shape of the maps, and what is unlike the paper."""
    if isinstance(config, LatentAttentionConfig):
        N, H, P = config.heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        heads = f"{N} heads of width {H} + {P} shared, latent {config.kv_lora_rank}"
        details = (heads, "rotary positions" if config.rope else "", f"maps [B, {N}, {queries}, {keys}]")
        return Box(label, tuple(filter(None, details)), ATTENTION)
    N, K, H = config.heads, config.kv_heads or config.heads, head_width(config, dim)
    heads = f"{N} heads of width {H}" if N == K else f"{N} query and {K} key-value heads of width {H}"
    unlike = [
        "rotary positions" if config.rope else "",
        "" if config.window is None else f"window of {config.window}",
        "" if config.softcap is None else f"scores within \u00b1{config.softcap:g}",
    ]
    details = (heads, ", ".join(filter(None, unlike)), f"maps [B, {N}, {queries}, {keys}]")
    return Box(label, tuple(filter(None, details)), ATTENTION)


def feed_forward_box(config: FeedForwardConfig | MoEConfig, dim: int) -> Box:
    """Return the widths and the activation of a feed-forward network.

    For a mixture: those of an expert, and how many a token goes through.
    """
    if isinstance(config, MoEConfig):
        (inside,) = feed_forward_box(config.expert, dim).details
        details = [f"{config.top_k} of {config.experts}, each {inside}"]
        if config.shared:
            details.append(f"and for all {feed_forward_box(config.shared, dim).details[0]}")
        return Box("Experts", tuple(details), FEED_FORWARD)
    d_ff = 4 * dim if config.d_ff is None else config.d_ff
    activation = {"relu": "ReLU", "silu": "SiLU", "relu2": "ReLU\u00b2"}.get(
        config.activation, config.activation.upper().replace("_", " ")
    )
    kind = f"{activation} gate" if config.gated else activation
    return Box("Feed-forward", (f"{dim} \u2192 {d_ff} \u2192 {dim}, {kind}",), FEED_FORWARD)


def norm_box(config: NormConfig) -> Box:
    """Return the kind of a norm."""
    return Box(type(config).__name__.removesuffix("Config"), (), NORM)


def embedding_box(stack: StackConfig, config: TransformerConfig) -> Box:
    """Return the table of a stack's embedding, what is done to its vectors, and who else reads it."""
    embedding, dim = stack.embedding, config.dim
    width = embedding.dim or dim
    table = f"table [{embedding.vocab_size}, {width}]" + ", shared" * config.share_embeddings
    changes = [f"{width} \u2192 {dim}"] * (width != dim) + [f"times \u221a{dim}"] * embedding.scale
    changes += [f"times {embedding.multiplier:g}"] * (embedding.multiplier != 1)
    return Box("Embedding", (", ".join([table, *changes]),), EMBEDDING)


def head_box(config: HeadConfig, dim: int, vocabulary: int) -> Box:
    """Return the output projection, and whose weights it has."""
    details = [f"{dim} \u2192 {vocabulary}", "the embedding's table" if config.tied else "a matrix of its own"]
    return Box("Output projection", (", ".join([*details, *["a bias"] * config.bias]),), HEAD)


def positions_text(positions: Positions) -> str:
    """Return what is added to the embedding, or later to the scores."""
    match positions:
        case LearnedPositions(length):
            return f"{length} learned\npositions"
        case SinusoidalPositions():
            return "sinusoidal\npositions"
        case AlibiPositions():
            return "distances,\nin all scores"
        case RelativePositions(buckets):
            return f"{buckets} distances,\nin all scores"
