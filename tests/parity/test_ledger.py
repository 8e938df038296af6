"""The ledger of docs/parity.md, measured again: every family in every configuration, forward, backward and trained."""

from pathlib import Path

import family_list
import numpy as np
import pytest
from hf_pairs import BOUND, SAVERS, is_drawn
from report import Distances, families, family_distances, ledger_row
from transformers import CONFIG_MAPPING

from jaxformer import InputError
from jaxformer.pretrained.families import FAMILIES, REFUSED, family_of

LIST = Path(__file__).parents[2] / "docs/families.md"
LEDGER = Path(__file__).parents[2] / "docs/parity.md"


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family, names in families().items() if is_drawn(names[0])])
def test_every_figure_is_within_its_bound(family: str) -> None:
    found = {name: family_distances(name) for name in families()[family]}
    assert {name: each for name, each in found.items() if not np.nanmax(each) <= BOUND} == {}


def test_the_list_of_families_is_up_to_date() -> None:
    """As `make families` writes it."""
    assert LIST.read_text() == family_list.page()


def test_what_is_refused_exists_and_is_told() -> None:
    assert set(REFUSED) <= set(CONFIG_MAPPING)
    assert not set(REFUSED) & set(FAMILIES)
    with pytest.raises(InputError, match='model_type="gemma3n" is not supported: it has embeddings for each layer'):
        family_of({"model_type": "gemma3n"})


def test_the_ledger_has_every_family() -> None:
    assert sorted(name for names in families().values() for name in names) == sorted(SAVERS)
    written = [line.split("|")[1:3] for line in LEDGER.read_text().splitlines()]
    for family, names in families().items():
        assert ledger_row(family, [Distances(0, 0, 0, 0, 0)] * len(names)).split("|")[1:3] in written
