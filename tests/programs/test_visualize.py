import jax
import matplotlib.image
import numpy as np
import pytest

from jaxformer import InputError, Transformer
from jaxformer.data import BOS, EOS, Symbols
from jaxformer.programs import runs, visualize
from jaxformer.programs.runs import CHECKPOINTS, Run, Settings, open_run
from jaxformer.train import Checkpoints

PICTURES = ["encoder-attention", "decoder-attention", "cross-attention", "masks", "positions"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run of two layers and three heads that has learned nothing yet."""
    folder = tmp_path_factory.mktemp("runs") / "copy"
    settings = Settings(Symbols(symbols=11, max_length=7), runs.ModelSettings(dim=24, layers=2, heads=3))
    runs.describe(folder, "copy", settings)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    checkpoints.save(1, runs.fresh_state(settings)[1], {}, loss=1.0)
    checkpoints.wait()
    checkpoints.close()
    return open_run(folder)


def test_pictures_are_written_and_named(run, tmp_path, capsys):
    visualize.main(["--checkpoint", str(run.folder), "--input", "3 1 4 1 5", "--output", str(tmp_path / "new" / "one")])
    answer, *paths = capsys.readouterr().out.splitlines()
    assert answer.startswith("3 1 4 1 5  ->  ")
    assert paths == [str(tmp_path / "new" / "one" / f"{name}.png") for name in PICTURES]
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert 250 < height < 2000
        assert 400 < width < 2500


def test_by_default_a_held_out_sequence_is_drawn_into_the_run(run, capsys):
    visualize.main(["--checkpoint", str(run.folder)])
    answer, *paths = capsys.readouterr().out.splitlines()
    assert answer.startswith(run.task.text.show(visualize.held_out_source(run)) + "  ->  ")
    assert paths == [str(run.folder / "pictures" / f"{name}.png") for name in PICTURES]


def test_the_maps_are_those_of_the_model(run):
    source, target = run.task.text.read("3 1 4 1 5"), np.array([BOS, 5, 3, 4, EOS])
    figures = dict(visualize.pictures(run, source, target))
    observed = jax.jit(Transformer.observe)(run.model, source[None], target[None, :-1])
    drawn = {
        "encoder-attention": (observed.encoder.attentions, "31415", "31415"),
        "decoder-attention": (observed.decoder.attentions, ["<bos>", *"201"], ["<bos>", *"201"]),
        "cross-attention": (observed.decoder.cross_attentions, [*"201", "<eos>"], "31415"),
    }
    for name, (maps, queries, keys) in drawn.items():
        panels = [axes for axes in figures[name].axes if axes.images]
        expected = np.concatenate([np.asarray(layer[0]) for layer in maps])
        assert len(panels) == len(expected) == 6
        for axes, weights in zip(panels, expected, strict=True):
            np.testing.assert_allclose(axes.images[0].get_array(), weights, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        assert [label.get_text() for label in panels[0].get_yticklabels()] == list(queries)
        assert [label.get_text() for label in panels[3].get_xticklabels()] == list(keys)


def test_decoding_stops_at_the_end_of_the_sequence(run):
    target = visualize.decode_greedily(run, run.task.text.read("3 1 4"))
    assert target[0] == BOS
    assert EOS not in target[1:-1]
    assert 2 <= len(target) <= 1 + run.task.text.max_length + 1


def test_example_masks():
    masks = visualize.example_masks()
    padding = masks["padding (5 real tokens)"]
    np.testing.assert_array_equal(masks["causal"], np.tri(8, dtype=bool))
    np.testing.assert_array_equal(padding, np.tile(np.arange(8) < 5, (8, 1)))
    np.testing.assert_array_equal(masks["both"], masks["causal"] & padding)


def test_bad_input(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'11' is no symbol"):
        visualize.main(["--checkpoint", str(run.folder), "--input", "3 11"])
    with pytest.raises(InputError, match="is not a run"):
        visualize.main(["--checkpoint", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no finished run in runs/"):
        visualize.main([])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        visualize.main(["--checkpoint", str(run.folder), "--output", str(tmp_path / "file")])
