import dataclasses
import functools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from jaxformer import PRESETS, InputError, Transformer, decoder_only, encoder_decoder, encoder_only, paper_base
from jaxformer.cli import accounting, inspect, runs
from jaxformer.cli.accounting import Sizes, cache_bytes, costs, module_rows, training_flops
from jaxformer.config import (
    AttentionConfig,
    ClassifierConfig,
    DiscriminatorConfig,
    FeedForwardConfig,
    MoEConfig,
    TransformerConfig,
)
from jaxformer.presets import symbols
from jaxformer.tasks import Copy, ModelSettings, SequenceSettings, find_task

SMALL = encoder_decoder(41, source_vocab_size=53, dim=24, layers=3, heads=2, d_ff=31)


def printed(capsys, *argv: str) -> str:
    inspect.main(list(argv))
    return capsys.readouterr().out


def paper_parameters(V: int, D: int, F: int, L: int) -> int:
    attention, norm = 4 * (D * D + D), 2 * D
    feed_forward = D * F + F + F * D + D
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    return V * D + L * (encoder + decoder)


def forward_flops(V: int, D: int, F: int, L: int, S: int, T: int) -> int:
    """Of the matrix products alone, two per multiplication and addition."""
    encoder = S * (4 * D * D + 2 * D * F) + 2 * S * S * D
    decoder = T * (6 * D * D + 2 * D * F) + S * 2 * D * D + 2 * T * T * D + 2 * T * S * D
    return 2 * (L * (encoder + decoder) + T * D * V)


@pytest.mark.parametrize("config", [SMALL, decoder_only(43, length=19, dim=8, layers=2, heads=2)])
def test_totals_are_the_sums_of_the_parameters(config):
    leaves = jax.tree.leaves(nnx.split(Transformer(config, rngs=nnx.Rngs(0)))[1])
    total = sum(leaf.size for leaf in leaves)
    rows = module_rows(config)
    assert rows[0].path == "model"
    assert rows[0].parameters == total
    assert sum(row.parameters for row in rows if "." not in row.path and row.path != "model") == total
    assert sum(row.parameters for row in inspect.fold(rows) if row.kind == "Block") == sum(
        row.parameters for row in rows if row.kind == "Block"
    )


@pytest.mark.parametrize(("name", "D"), [("paper-base", 512), ("paper-big", 1024)])
def test_parameters_of_the_papers_models(name, D):
    rows = module_rows(PRESETS[name]())
    assert rows[0].parameters == paper_parameters(37000, D, 4 * D, 6)


def test_paper_base_has_63_million_parameters():
    assert module_rows(paper_base(37000))[0].parameters == 63_082_496


def test_every_module_is_listed_with_its_shapes():
    rows = {row.path: row for row in module_rows(SMALL)}
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    modules = {path: module for path, module in nnx.iter_modules(model) if not isinstance(module, nnx.List)}
    assert set(rows) == {".".join(map(str, path)) or "model" for path in modules}
    assert all(row.calls for row in rows.values())
    assert rows["model"].calls == (("[B, S], [B, T]", "[B, T, 41]"),)
    assert rows["source_embedding"].calls == (("[B, S]", "[B, S, 24]"),)
    assert rows["encoder.blocks.2.feed_forward.up"].calls == (("[B, S, 24]", "[B, S, 31]"),)
    assert rows["decoder.blocks.0.attention.key"].calls == (("[B, T, 24]", "[B, T, 2, 12]"),)
    assert rows["decoder.blocks.0.cross.key"].calls == (("[B, S, 24]", "[B, S, 2, 12]"),)
    assert rows["decoder.blocks.0.cross.output"].calls == (("[B, T, 2, 12]", "[B, T, 24]"),)
    assert rows["head"].calls == (("[B, T, 24], [41, 24]", "[B, T, 41]"),)


def test_a_shared_embedding_is_listed_with_both_calls():
    (row,) = [row for row in module_rows(symbols()) if row.path == "embedding"]
    assert row.calls == (("[B, S]", "[B, S, 128]"), ("[B, T]", "[B, T, 128]"))


def test_classes_are_left_as_they_were():
    call = Transformer.__call__
    module_rows(symbols())
    assert Transformer.__call__ is call


def test_equal_blocks_are_folded_and_others_are_not():
    assert SMALL.decoder is not None
    first, *others = SMALL.decoder.blocks
    wide = dataclasses.replace(first, attention=AttentionConfig(heads=3))
    decoder = dataclasses.replace(SMALL.decoder, blocks=(wide, *others))
    paths = [row.path for row in inspect.fold(module_rows(dataclasses.replace(SMALL, decoder=decoder)))]
    assert "encoder.blocks.1 - 2" in paths
    assert "encoder.blocks.1" not in paths
    assert {"decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2"} <= set(paths)


@pytest.mark.parametrize(("S", "T"), [(64, 61), pytest.param(2048, 1024, marks=pytest.mark.slow)])
def test_flops_are_close_to_those_of_the_matrix_products(S, T):
    config = encoder_decoder(101, dim=128, layers=1, heads=2, dropout=0.0)
    counted = costs(config, Sizes(3, S, T))
    expected = 3 * forward_flops(101, 128, 512, 1, S, T)
    assert counted.parameters == module_rows(config)[0].parameters
    assert counted.weights == 4 * counted.parameters
    assert 1 < counted.forward / expected < 1.06
    optimizer = 30 * counted.parameters
    assert 1 < counted.step / (3 * expected) < 1.1 + optimizer / (3 * expected)


def test_flops_of_long_inputs_are_extrapolated_exactly():
    config, sizes = encoder_decoder(37, dim=16, layers=1, heads=2, dropout=0.0), Sizes(1, 89, 101)
    lower = functools.partial(accounting.lower_forward, config)
    analysis = lower(sizes).cost_analysis()
    assert analysis is not None
    assert analysis["flops"] < 2**24  # XLA sums in float32, which holds whole numbers up to here
    assert accounting.flops(sizes, lower) == pytest.approx(analysis["flops"], abs=0.01)


@pytest.mark.smoke
def test_bytes_of_the_cache():
    B, S, T, L, D = 3, 11, 13, 3, 24
    assert cache_bytes(SMALL, Sizes(B, S, T)) == (B * T * L * 2 * D * 4, B * S * L * 2 * D * 4)
    assert cache_bytes(decoder_only(43, length=19, dim=8, layers=2, heads=2), Sizes(B, S, T)) == (
        B * T * 2 * 2 * 8 * 4,
        0,
    )
    assert cache_bytes(encoder_only(43, length=19, dim=8, layers=2, heads=2), Sizes(B, S, T)) == (0, 0)


@pytest.mark.parametrize("build", [decoder_only, encoder_only])
def test_one_stack_alone_has_costs(build):
    config = build(43, length=19, dim=8, layers=1, heads=2)
    counted = costs(config, Sizes(2, 13, 13))
    assert 2 * counted.forward < counted.step
    assert counted.cache_token == (2 * 8 * 4 if config.decoder else 0)


@pytest.mark.parametrize("head", [ClassifierConfig(3), DiscriminatorConfig()])
def test_heads_without_a_vocabulary_have_costs(head):
    counted = costs(
        dataclasses.replace(encoder_only(43, length=19, dim=8, layers=1, heads=2), head=head), Sizes(2, 9, 9)
    )
    assert 2 * counted.forward < counted.step


@pytest.mark.slow
def test_the_table_is_aligned_and_fits(capsys):
    text = printed(capsys, "paper-big", "--batch", "2", "--source-length", "17", "--length", "19")
    assert text.startswith("paper-big: batch B = 2, source length S = 17, target length T = 19, model width D = 1024\n")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    start = lines[2].index("class")
    assert {line[start - 1] for line in lines[2:40] if line} == {" "}
    assert re.search(r"^encoder\.blocks\.1 - 5 +Block +as encoder\.blocks\.0 +[\d,]+$", text, re.MULTILINE)
    assert re.search(r"^parameters +214,245,376 in 857\.0 MB$", text, re.MULTILINE)
    assert re.search(r"^cache +49,152 bytes a token; 1\.9 MB for B x T tokens$", text, re.MULTILINE)
    assert "training step" in text
    assert "cross-attention" in text


def test_experts_cost_what_a_token_goes_through():
    """Two of nine experts and a shared one are one network of their width; all of them have parameters."""
    plain = decoder_only(43, length=19, dim=8, layers=2, heads=2)
    (block, _), each = plain.decoder.blocks, FeedForwardConfig(5)
    found = {}
    for name, network in (
        ("mixture", MoEConfig(9, 2, each, shared=FeedForwardConfig(7))),
        ("plain", FeedForwardConfig(17)),
    ):
        blocks = (dataclasses.replace(block, feed_forward=network),) * 2
        found[name] = costs(
            dataclasses.replace(plain, decoder=dataclasses.replace(plain.decoder, blocks=blocks)), Sizes(2, 1, 16)
        )
    assert found["mixture"].forward == found["plain"].forward
    assert found["mixture"].step == found["plain"].step
    inside, router = 9 * (8 * 5 + 5 + 5 * 8 + 8) + (8 * 7 + 7 + 7 * 8 + 8), 8 * 9
    assert found["mixture"].parameters - found["plain"].parameters == 2 * (inside + router - (8 * 17 + 17 + 17 * 8 + 8))
    idle = 7 * (8 * 5 + 5 + 5 * 8 + 8)
    assert found["mixture"].active_parameters == found["mixture"].parameters - 2 * idle
    assert found["plain"].active_parameters == found["plain"].parameters
    assert inspect.summary(found["mixture"]).splitlines()[0].endswith("; a token goes through 1,922")
    assert "a token goes through" not in inspect.summary(found["plain"])


def test_a_run_is_described_without_its_weights(tmp_path, capsys):
    settings = SequenceSettings(model=ModelSettings(dim=16, layers=1, heads=2))
    runs.write_description(tmp_path / "run", find_task("copy"), settings, Copy(settings).config)
    text = printed(capsys, "--checkpoint", str(tmp_path / "run"))
    total = paper_parameters(35, 16, 64, 1) + 2 * 2 * 16  # and two final norms
    assert f"{total:,}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["paper-bass"], "unknown preset 'paper-bass': choose one of paper-base, paper-big, symbols, tiny, small"),
        (["symbols", "--checkpoint", "runs/copy"], "name a preset, a --checkpoint or a --model, one of them"),
        (["tiny", "--batch", "0"], "--batch must be from 1 to 2147483647, not 0"),
        (["gpt2", "--length", "1025"], "--length 1025 exceeds the 1024 positions"),
        (["--checkpoint", "nowhere"], "nowhere is not a run"),
    ],
)
def test_bad_input(argv, message):
    with pytest.raises(InputError, match=re.escape(message)):
        inspect.main(argv)


def test_positions_of_an_encoder_limit_its_input():
    with pytest.raises(InputError, match="--source-length 23 exceeds the 19 positions of the encoder"):
        inspect.check_sizes(encoder_only(43, length=19, dim=8, layers=1, heads=2), Sizes(1, 23, 29))


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (63_082_496, "63.1 MB"), (2.5e13, "25.0 TB")]
)
def test_quantities(value, said):
    assert inspect.quantity(value, "B") == said


def jaxformer(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jaxformer", *argv], capture_output=True, text=True, check=False)


def test_commands_are_listed():
    done = jaxformer()
    assert done.returncode == 0
    assert re.search(r"^  inspect +\w.*\n.* inspect paper-base\n  perplexity +\w", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dissect"], "error: unknown command 'dissect': choose one of train, generate, answer, classify, embed"),
        (
            ["inspect", "large"],
            "error: unknown preset 'large': choose one of paper-base, paper-big, symbols, tiny, small",
        ),
    ],
)
def test_errors_are_one_line_and_exit_status_2(argv, message):
    done = jaxformer(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_mesh_divides_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main(["tiny", "--mesh", "fsdp=8,tensor=4"])
    said = capsys.readouterr().out
    assert "parameters on each of 32 devices" in said
    assert "N = 2 is not divided by tensor=4" in said
    with pytest.raises(InputError, match="give all sizes"):
        inspect.main(["tiny", "--mesh", "fsdp=-1"])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(decoder_only(512, length=64, dim=128, layers=2, heads=4), id="gpt"),
        pytest.param(encoder_decoder(512, dim=128, layers=2, heads=4), id="encoder-decoder"),
        pytest.param(PRESETS["deepseek-tiny"](512), id="deepseek", marks=pytest.mark.slow),
    ],
)
def test_flops_of_training_are_nearly_those_that_xla_counts(config: TransformerConfig) -> None:
    """XLA counts norms, activations, the softmax and the optimizer too."""
    shapes = [(8, 48), (8, 64)] if config.encoder else [(8, 64)]
    batch = dict(zip(("source", "target") if config.encoder else ("inputs",), map(np.zeros, shapes), strict=True))
    found = training_flops(config, batch)
    assert found is not None
    counted = costs(config, Sizes(8, 48, 64)).step
    assert 0.75 < found / counted < 1.02
    assert training_flops(config, batch, trained=0.0) == pytest.approx(found * 2 / 3)
    assert training_flops(config, {"tokens": np.zeros((8, 64))}) is None
