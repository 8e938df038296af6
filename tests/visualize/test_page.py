"""The page of attention: what is in the file, and what a browser makes of it."""

import base64
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browse

from jaxformer import InputError
from jaxformer.visualize import Observation, attention_page, entropies
from jaxformer.visualize.page import UNIT

CELL = 30  # pixels of a cell of a small map, as wide as high
HOSTILE = ["</script><script>alert(1)</script>", "<b>&amp;", "\"'`", "\n", "\x1b[31m", "\u202e", "${title}", "", " a"]
SEEN = [*HOSTILE[:3], "↵", "␛[31m", "⟨U+202E⟩", "${title}", "∅", "␣a"]


def maps(rng: np.random.Generator, layers: int, heads: int, T: int, S: int, *, causal: bool = False):
    """Random maps that differ in sharpness; in causal ones no query sees what follows it."""
    scores = rng.normal(size=(layers, heads, T, S)) * rng.uniform(0.5, 4, (layers, heads, 1, 1))
    weights = np.exp(scores) * (np.tri(T, S) if causal else 1)
    return list((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))


def data(page: str) -> list[dict]:
    """The observations in a page, as its script reads them."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(text)["observations"]


def weights(packed: dict) -> np.ndarray:
    """The maps [L, N, T, S] of an observation in a page."""
    units = np.frombuffer(zlib.decompress(base64.b64decode(packed["weights"])), "<u2")
    L, N = len(packed["entropy"]), len(packed["entropy"][0])
    return units.reshape(L, N, len(packed["queries"]), len(packed["keys"])) / UNIT


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    """An encoder-decoder of 2 layers and 3 heads that reads 7 tokens and says 5."""
    rng = np.random.default_rng(0)
    reads, heard, says = list("tuvwxyz"), ["<bos>", *"abcd"], [*"abcd", "<eos>"]
    return [
        Observation("encoder", "Encoder", maps(rng, 2, 3, 7, 7), reads),
        Observation("decoder", "Decoder", maps(rng, 2, 3, 5, 5, causal=True), heard),
        Observation("cross", "Cross-attention", maps(rng, 2, 3, 5, 7), says, reads, "says next", "attends to"),
    ]


def test_the_maps_in_the_page_are_those_given(observations):
    for packed, given in zip(data(attention_page(observations, title="")), observations, strict=True):
        drawn = weights(packed)
        np.testing.assert_allclose(drawn, np.stack(given.maps), atol=0.5 / UNIT + 1e-7)
        np.testing.assert_allclose(drawn.sum(axis=-1), 1, atol=0.5 / UNIT * drawn.shape[-1] + 1e-6)
        assert (packed["queries"], packed["keys"]) == (list(given.queries), list(given.sources))
        # The page has three decimals of the bits: half a unit of the last one is what rounding may cost.
        expected = [entropies(layer) for layer in given.maps]
        np.testing.assert_allclose(packed["entropy"], expected, rtol=0, atol=0.5e-3 + 1e-7)


def test_masked_cells_are_exactly_zero(observations):
    drawn, given = weights(data(attention_page(observations, title=""))[1]), np.stack(observations[1].maps)
    assert (drawn[..., ~np.tri(5, dtype=bool)] == 0).all()
    assert (drawn[given > 1 / UNIT] > 0).all()


def test_layers_may_have_different_numbers_of_heads(rng):
    seen = Observation("decoder", "", [*maps(rng, 1, 1, 2, 2), *maps(rng, 1, 3, 2, 2)], list("ab"))
    (packed,) = data(attention_page([seen], title=""))
    assert [len(layer) for layer in packed["entropy"]] == [1, 3]
    assert len(zlib.decompress(base64.b64decode(packed["weights"]))) == 2 * (1 + 3) * 2 * 2


def test_no_token_breaks_out_of_the_page(rng):
    seen = Observation("decoder", "Self-attention", maps(rng, 1, 2, 9, 9), HOSTILE)
    page = attention_page([seen], title="<i>&", subtitle=HOSTILE[0])
    assert page.count("</script>") == 2
    assert data(page)[0]["queries"] == SEEN
    assert html.escape("<i>&") in page
    assert "<i>&" not in page


@pytest.mark.smoke
def test_page_stays_small(rng):
    tokens = ["word"] * 199
    page = attention_page([Observation("decoder", "", maps(rng, 6, 6, 199, 199, causal=True), tokens)], title="")
    assert len(page) < 2.0 * 6 * 6 * 199 * 199  # at most half of what float32 takes, mere noise as it is


@pytest.mark.parametrize("count", [0, 2])
def test_observations_need_different_names(rng, count):
    with pytest.raises(InputError, match="observations of different names"):
        attention_page([Observation("decoder", "", maps(rng, 1, 1, 1, 1), ["a"])] * count, title="")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    with browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def path(observations, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "attention page.html"
    path.write_text(attention_page(observations, title="Attention"), encoding="utf-8")
    return path


def show(page: Page, path: Path, address: str = "") -> None:
    """Open a page of attention and wait for its last words."""
    page.open(path, address, drawn="#reading:not(:empty)")


def shade(page: Page, selector: str) -> list[float]:
    """How dark the backgrounds of some elements are, from 0 (white) to 1 (black)."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].map((i) => getComputedStyle(i).backgroundColor)"
    return [1 - np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255 for colour in page.run(found)]


def map_pixels(page: Page, T: int, S: int) -> np.ndarray:
    """The colours [T, S, 3] in the middle of the map's cells, as drawn; the map ends where its canvas does."""
    rows = page.run(
        f"""(() => {{
          const canvas = document.querySelector("#map"), cell = {CELL} * devicePixelRatio;
          const blank = new OffscreenCanvas(canvas.width, canvas.height);
          const copy = blank.getContext("2d", {{ willReadFrequently: true }});
          copy.drawImage(canvas, 0, 0);
          const [left, top] = [canvas.width - cell * {S} - 1, canvas.height - cell * {T} - 1];
          const at = (i, j) => copy.getImageData(left + (j + 0.5) * cell, top + (i + 0.5) * cell, 1, 1);
          const range = (count) => [...Array(count).keys()];
          return range({T}).map((i) => range({S}).map((j) => [...at(i, j).data].slice(0, 3)));
        }})()"""
    )
    return np.array(rows)


@pytest.mark.chromium
def test_opens_from_disk_and_asks_for_nothing_else(page, path, tmp_path, rng):
    many, one = tmp_path / "many.html", tmp_path / "one.html"
    seen = Observation("decoder", "Self-attention", maps(rng, 3, 16, 199, 199, causal=True), ["word"] * 199)
    many.write_text(attention_page([seen], title="Many"), encoding="utf-8")
    one.write_text(attention_page([Observation("decoder", "", [np.ones((1, 1, 1))], ["a"])], title="One"))
    for file, heads in ((path, 2 * 3), (many, 3 * 16), (one, 1)):
        show(page, file)
        assert len(page.texts("#maps canvas")) == len(page.texts("#entropy button")) == heads
        assert page.run("document.querySelector('#map').width") > 30
        assert page.requests == [file.as_uri()]
        assert page.problems == []


@pytest.mark.chromium
def test_a_click_chooses_the_head(page, path, observations):
    show(page, path, "#map=decoder")
    assert page.texts("#name") == ["Layer 1, head 1"]
    before, screen = map_pixels(page, 5, 5), page.screenshot()
    page.point('#maps [data-layer="1"][data-head="2"]', click=True)
    assert page.texts("#name") == ["Layer 2, head 3"]
    assert page.run("location.hash") == "#map=decoder&layer=2&head=3"
    after = map_pixels(page, 5, 5)
    assert (before != after).any()
    assert page.screenshot() != screen
    expected = observations[1].maps[1][2]
    darkness = 255 * 3 - after.sum(axis=-1)
    assert (darkness[expected == 0] == 0).all()  # the colour of the card
    order = np.argsort(expected[expected > 0])
    assert (np.diff(darkness[expected > 0][order]) >= 0).all()
    page.point('#entropy [data-layer="0"][data-head="1"]', click=True)
    assert page.texts("#name") == ["Layer 1, head 2"]
    page.press("ArrowDown")
    page.press("ArrowLeft")
    assert page.texts("#name") == ["Layer 2, head 1"]
    assert page.texts(".grid [aria-pressed=true]")[1] == f"{entropies(observations[1].maps[1])[0]:.2f}"
    assert page.problems == []


@pytest.mark.chromium
def test_tokens_light_up_by_what_they_attend_to(page, path, observations):
    show(page, path, "#map=decoder&layer=2&head=1")
    idle, screen = shade(page, "#tokens i"), page.screenshot()
    page.point('#tokens [data-query="3"]')
    assert page.screenshot() != screen
    row = observations[1].maps[1][0][3]
    shown = shade(page, "#tokens i")
    assert (np.diff(np.array(shown)[np.argsort(row)]) >= 0).all()
    assert shown[4] == 0  # the future
    assert max(shown) > 0.2
    best = int(row.argmax())
    assert page.texts("#reading")[0].startswith(
        f"c4 attends to {observations[1].queries[best]}{best + 1} {row.max():.3f}"
    )
    page.point("h1")
    assert shade(page, "#tokens i") == idle
    page.point('#tokens [data-query="3"]', click=True)
    page.point("h1")
    assert shade(page, "#tokens i") == shown
    assert page.run("location.hash") == "#map=decoder&layer=2&head=1&query=4"
    page.press("Escape")
    assert shade(page, "#tokens i") == idle


@pytest.mark.chromium
def test_cross_attention_reads_both_ways(page, path, observations):
    show(page, path)
    page.point("#tabs button:nth-child(3)", click=True)
    assert page.texts("#tabs [aria-selected=true]") == ["Cross-attention"]
    assert page.texts("#tokens i") == [*"abcd", "<eos>", *"tuvwxyz"]
    weights = observations[2].maps[0][0]
    page.point('#tokens [data-query="1"]')
    assert int(np.argmax(shade(page, "#tokens [data-key]"))) == int(weights[1].argmax())
    assert set(shade(page, "#tokens [data-query]")) == {0.0}
    page.point('#tokens [data-key="2"]')
    assert int(np.argmax(shade(page, "#tokens [data-query]"))) == int(weights[:, 2].argmax())
    assert set(shade(page, "#tokens [data-key]")) == {0.0}
    width, height = page.run("[map.clientWidth, map.clientHeight]")
    page.point("#map", at=(width - 1 - CELL * 5.5, height - 1 - CELL * 3.5))  # query 2 of 5, key 2 of 7
    assert page.texts("#reading") == [f"b2 attends to u2 {weights[1, 1]:.3f}"]
    assert page.run("cell.hidden") is False


@pytest.mark.chromium
def test_the_address_chooses_what_is_shown(page, path):
    show(page, path, "#map=cross&layer=2&head=3&query=5")
    assert page.texts("#name") == ["Layer 2, head 3"]
    assert page.texts("#tokens .pinned") == ["<eos>"]
    page.run("location.hash = '#map=encoder&layer=99&head=none&query=-4'")
    page.until("location.hash == '#map=encoder&layer=2&head=1&query=1'")
    assert page.texts("#name") == ["Layer 2, head 1"]
    assert page.problems == []


@pytest.mark.chromium
def test_hostile_tokens_are_only_text(page, tmp_path, rng):
    path = tmp_path / "hostile.html"
    seen = Observation("decoder", HOSTILE[0], maps(rng, 1, 2, 9, 9), HOSTILE, query_label=HOSTILE[1])
    path.write_text(attention_page([seen], title=HOSTILE[0], subtitle=HOSTILE[2]), encoding="utf-8")
    show(page, path)
    assert page.texts("#tokens i") == SEEN
    assert page.texts("h1") == [HOSTILE[0]]
    page.point('#tokens [data-query="0"]')
    assert page.texts("#reading")[0].startswith(HOSTILE[0])
    assert page.run("document.scripts.length") == 2
    assert page.problems == []


@pytest.mark.chromium
def test_dark_and_light(page, path):
    show(page, path, "#map=decoder&layer=2&head=2&query=3")
    light = map_pixels(page, 5, 5)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        page.until("document.querySelector('#tokens [data-query=\"4\"]').style.background != 'rgb(255, 255, 255)'")
        dark = map_pixels(page, 5, 5)
        assert shade(page, "body")[0] > 0.8
        assert light[0, 4].tolist() == [255, 255, 255]
        assert dark[0, 4].max() < 50
        assert dark[0, 0].min() > 150  # the first query attends to itself alone
    finally:
        page.ask("Emulation.setEmulatedMedia", features=[])
