"""Attention as one web page without any other file: layers and heads to click, tokens to point at."""

import base64
import html
import json
import zlib
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from jaxformer.errors import InputError
from jaxformer.visualize.observation import Observation, entropies, visible

UNIT = 10_000  # weights are stored as whole numbers of 1 / UNIT


def attention_page(observations: Sequence[Observation], *, title: str, subtitle: str = "") -> str:
    """Return an HTML page of attention maps, a tab per observation, that opens from disk and loads nothing else.

    Its address chooses what it shows: `#map=NAME&layer=2&head=3&query=5`, counted from one. Weights are rounded to 4
    decimals, an exact zero stays one. Raises InputError for no observations, or equal names.
    """
    names = [observation.name for observation in observations]
    if not names or len(set(names)) < len(names):
        raise InputError(f"a page needs observations of different names, not {names}")
    data = json.dumps({"unit": UNIT, "observations": [pack(observation) for observation in observations]})
    return Template(asset("page.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        style=asset("page.css"),
        script=asset("page.js"),
        data=data.replace("<", "\\u003c"),  # no token can end the script that holds it
    )


def pack(observation: Observation) -> dict[str, Any]:
    """Return an observation as JSON: the maps one after another as deflated little-endian uint16, in base64."""
    weights = np.concatenate([np.ravel(layer) for layer in observation.maps])
    units = np.rint(np.clip(weights, 0, 1) * UNIT).astype("<u2")
    return {
        "name": observation.name,
        "title": observation.title,
        "same": observation.keys is None,
        "queries": [visible(token) for token in observation.queries],
        "keys": [visible(token) for token in observation.sources],
        "query_label": observation.query_label,
        "key_label": observation.key_label,
        "entropy": [[round(float(bits), 3) for bits in entropies(layer)] for layer in observation.maps],
        "weights": base64.b64encode(zlib.compress(units.tobytes(), 9)).decode(),
    }


def asset(name: str) -> str:
    """Return the text of a file that lies beside this one."""
    return resources.files("jaxformer.visualize").joinpath(name).read_text(encoding="utf-8")
