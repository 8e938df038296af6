import dataclasses
import io

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    MoEConfig,
    TransformerConfig,
)
from jaxformer.presets import PRESETS, decoder_only, encoder_decoder, encoder_only
from jaxformer.visualize import graph_figure
from jaxformer.visualize.graph import folded


def rendered(figure: Figure) -> tuple[int, int]:
    """Height and width of the picture in pixels."""
    file = io.BytesIO()
    figure.savefig(file, dpi=50, format="png")
    file.seek(0)
    return matplotlib.image.imread(file).shape[:2]


def texts(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts if text.get_text()]


def height(figure: Figure, label: str) -> list[float]:
    """How high the texts that say `label` stand, the left ones first."""
    (axes,) = figure.axes
    return [text.get_position()[1] for text in axes.texts if text.get_text() == label]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_drawn(name):
    config = PRESETS[name]()
    figure = graph_figure(config)
    pixels = rendered(figure)
    assert 300 < pixels[0] < 700
    assert (pixels[1] > 400) == (config.encoder is not None)
    said = texts(figure)
    equal = len(set(config.main.blocks)) == 1
    assert said.count(f"\u00d7 {len(config.main.blocks) - (not equal)}") == 1 + (config.encoder is not None)
    assert f"[B, T, {config.main.embedding.vocab_size}]" in said
    assert "logits" in said


def test_the_paper_s_model():
    figure = graph_figure(PRESETS["paper-base"]())
    said = texts(figure)
    assert said.count("LayerNorm") == 2 + 3
    assert said.count("+") == 2 + 3 + 2  # residual sums and positions
    assert {"maps [B, 8, S, S]", "maps [B, 8, T, T]", "maps [B, 8, T, S]"} <= set(said)
    assert said.count("512 → 2048 → 512, ReLU") == 2
    assert "512 → 37000, the embedding's table" in said
    # Post-LN: the norm stands above what it normalises.
    assert height(figure, "Self-attention")[0] < height(figure, "LayerNorm")[0]


def test_experts_are_counted():
    plain = decoder_only(11, length=19, dim=12, layers=2, heads=2)
    expert = FeedForwardConfig(5, "silu", gated=True)
    for shared, said in ((None, []), (FeedForwardConfig(7), ["and for all 12 \u2192 7 \u2192 12, ReLU"])):
        block = dataclasses.replace(plain.decoder.blocks[0], feed_forward=MoEConfig(9, 2, expert, shared=shared))
        figure = graph_figure(
            dataclasses.replace(plain, decoder=dataclasses.replace(plain.decoder, blocks=(block,) * 2))
        )
        rendered(figure)
        assert {"Experts", "2 of 9, each 12 \u2192 5 \u2192 12, SiLU gate", *said} <= set(texts(figure))


def test_pre_norm_stands_below_and_ends_the_stack():
    figure = graph_figure(encoder_decoder(11, dim=12, layers=3, heads=2, norm_order="pre"))
    norms = height(figure, "LayerNorm")
    assert norms[0] < height(figure, "Self-attention")[0]
    assert norms[2] > height(figure, "Feed-forward")[0]  # the final norm of the encoder
    assert len(norms) == 3 + 4


def test_what_is_unlike_the_paper_is_said():
    said = texts(graph_figure(PRESETS["small-modern"]()))
    assert "6 query and 2 key-value heads of width 64" in said
    assert "rotary positions" in said
    assert "384 → 1024 → 384, SiLU gate" in said
    assert said.count("RMSNorm") == 3
    assert not any("sinusoidal" in text for text in said)


def test_encoder_only_and_no_head():
    config = encoder_only(13, length=7, dim=8, layers=2, heads=2)
    odd = dataclasses.replace(config.encoder.blocks[0], attention=AttentionConfig(2, window=3, softcap=5.0))
    encoder = dataclasses.replace(
        config.encoder, blocks=(*config.encoder.blocks, odd), embedding=EmbeddingConfig(13, dim=4)
    )
    said = texts(graph_figure(TransformerConfig(8, encoder=encoder, head=None)))
    assert "hidden states" in said
    assert "Output projection" not in said
    assert "window of 3, scores within ±5" in said
    assert "table [13, 4], 4 → 8, times √8" in said
    assert said.count("\u00d7 2") == 1
    assert said.count("Self-attention") == 2
    assert "7 learned\npositions" in said


def test_untied_head_with_a_bias():
    config = dataclasses.replace(PRESETS["tiny"](), head=HeadConfig(tied=False, bias=True))
    assert "128 → 256, a matrix of its own, a bias" in texts(graph_figure(config))


def test_equal_layers_are_folded():
    a, b = BlockConfig(), BlockConfig(norm_order="pre")
    assert folded((a,)) == [((a,), 1)]
    assert folded((a, a, a)) == [((a,), 3)]
    assert folded((a, b) * 3) == [((a, b), 3)]
    assert folded((a, a, b)) == [((a,), 2), ((b,), 1)]
    assert folded((a, b, b, a)) == [((a,), 1), ((b,), 2), ((a,), 1)]
