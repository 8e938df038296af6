from functools import partial

import jax
import matplotlib.image
import numpy as np
import pytest

from jaxformer import InputError, Transformer
from jaxformer.cli import visualize
from jaxformer.cli.runs import open_run
from jaxformer.cli.train import train
from jaxformer.data import BOS, EOS
from jaxformer.visualize import attention_page, heat_map

pytestmark = pytest.mark.xdist_group("pictures")  # one worker makes what they share
PICTURES = ["encoder-attention", "decoder-attention", "cross-attention", "words", "masks", "positions", "layers"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two layers and three heads that has learned next to nothing yet."""
    folder = tmp_path_factory.mktemp("runs") / "copy"
    sizes = ["--symbols", "11", "--max-length", "7", "--dim", "24", "--layers", "2", "--heads", "3"]
    train(["--task", "copy", *sizes, "--steps", "1", "--warmup-steps", "1", "--output", str(folder)])
    return open_run(folder)


def files(folder) -> list[str]:
    """The paths that the program prints."""
    return [str(folder / name) for name in ("attention.html", *(f"{name}.png" for name in PICTURES))]


def test_pictures_are_written_and_named(run, tmp_path, capsys):
    folder = tmp_path / "new" / "one"
    visualize.main(["--checkpoint", str(run.folder), "--input", "3 1 4 1 5", "--output", str(folder)])
    answer, *paths = capsys.readouterr().out.splitlines()
    assert answer.startswith("3 1 4 1 5  ->  ")
    assert paths == files(folder)
    for path in paths[1:]:
        height, width, _ = matplotlib.image.imread(path).shape
        assert 250 < height < 2000
        assert 400 < width < 2500
    seen = run.task.observe(run.model, "3 1 4 1 5")
    assert seen.answer == answer
    page = attention_page(seen.observations, title="What copy attends to", subtitle=answer)
    assert (folder / "attention.html").read_text(encoding="utf-8") == page


def test_by_default_a_held_out_sequence_is_drawn_into_the_run(run, capsys, monkeypatch):
    monkeypatch.setattr(visualize, "pictures", lambda model, observations: iter(()))
    visualize.main(["--checkpoint", str(run.folder)])
    answer, path = capsys.readouterr().out.splitlines()
    assert answer.startswith(max(run.task.example_inputs(), key=lambda shown: len(shown.split())) + "  ->  ")
    assert path == str(run.folder / "pictures" / "attention.html")


@pytest.mark.parametrize(
    ("flags", "layer", "head"),
    [
        (["--text"], 2, None),
        (["--layer", "1"], 1, None),
        (["--head", "3"], 2, 3),
        (["--layer", "1", "--head", "2"], 1, 2),
    ],
)
def test_maps_are_printed_as_text(run, capsys, monkeypatch, flags, layer, head):
    monkeypatch.setattr(visualize, "pictures", lambda model, observations: iter(()))
    visualize.main(["--checkpoint", str(run.folder), "--prompt", "3 1 4", *flags])
    said = capsys.readouterr().out
    seen = run.task.observe(run.model, "3 1 4")
    maps = [heat_map(observation, layer=layer, head=head) for observation in seen.observations]
    assert said == "\n\n".join([seen.answer, *maps, f"{run.folder / 'pictures' / 'attention.html'}\n"])


def test_the_maps_are_those_of_the_model(run):
    source, target = run.task.encode("3 1 4 1 5"), np.array([BOS, 5, 3, 4, EOS])
    observations = run.task.observations(run.model, source, target)
    figures = dict(visualize.pictures(run.model, observations))
    observed = jax.jit(partial(Transformer.__call__, return_intermediates=True))(
        run.model, source[None], target[None, :-1]
    )
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


def test_what_is_drawn_sums_to_one_and_never_shows_the_future(run):
    for seen in run.task.observe(run.model, "3 1 4 1 5 9").observations:
        maps = np.stack(seen.maps)
        np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-6)
        future = np.triu(np.ones(maps.shape[2:], bool), 1)
        assert ((maps[..., future] == 0).all()) == (seen.name == "decoder")


def test_decoding_stops_at_the_end_of_the_sequence(run):
    target = run.task.decode_greedily(run.model, run.task.encode("3 1 4"))
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
    with pytest.raises(InputError, match="there is no layer 3 in the encoder: choose one of 1 to 2"):
        visualize.main(["--checkpoint", str(run.folder), "--layer", "3"])
    with pytest.raises(InputError, match="--colour"):
        visualize.main(["--colour"])
    with pytest.raises(InputError, match="is not a run"):
        visualize.main(["--checkpoint", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no finished run in runs/"):
        visualize.main([])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        visualize.main(["--checkpoint", str(run.folder), "--output", str(tmp_path / "file")])
