"""Rotary positions as a `config.json` says them, today under rope_parameters or once under other names."""

import math
from typing import Any

from jaxformer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from jaxformer.errors import InputError
from jaxformer.ops.rotary import RotaryLayout


def rope(
    hf: dict[str, Any],
    width: int,
    *,
    theta: float = 10000.0,
    said: dict[str, Any] | None = None,
    layout: RotaryLayout = "halves",
) -> Rope:
    """Rotary positions of heads of this width. theta: where the file says none. said: in place of what the file says.

    Raises InputError for a scaling that we do not have and for one that lacks a number.
    """
    said = said_of_rope(hf) if said is None else said
    base = said.get("rope_theta", hf.get("rope_theta", theta))
    part = said.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    turned = int(width * part)
    return Rope(float(base), None if turned == width else turned, layout, scaling(hf, said))


def said_of_rope(hf: dict[str, Any]) -> dict[str, Any]:
    """What the file says of rotary positions in one place."""
    return hf.get("rope_parameters") or hf.get("rope_scaling") or {}


def scaling(hf: dict[str, Any], said: dict[str, Any]) -> RopeScaling | None:
    """How the positions reach beyond the length of training; None: they do not."""
    kind, longest = said.get("rope_type", said.get("type", "default")), int(hf.get("max_position_embeddings", 2048))
    trained = hf.get("original_max_position_embeddings", said.get("original_max_position_embeddings", longest))
    if kind in ("su", "yarn") and "long_factor" in said:
        kind = "longrope"  # what Phi-3's first files called it
    try:
        match kind:
            case "default":
                return None
            case "linear":
                return LinearScaling(float(said["factor"]))
            case "dynamic":
                return DynamicScaling(float(said["factor"]), longest)
            case "llama3":
                low, high = float(said["low_freq_factor"]), float(said["high_freq_factor"])
                return Llama3Scaling(float(said["factor"]), low, high, trained)
            case "yarn":
                return yarn(said, longest, trained)
            case "longrope":
                factor = said.get("factor") or longest / trained
                magnitude = said.get("attention_factor")
                if magnitude is None:
                    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
                return LongRopeScaling(tuple(said["short_factor"]), tuple(said["long_factor"]), trained, magnitude)
    except KeyError as missing:
        raise InputError(f"rope_type={kind!r} needs {missing} beside it") from None
    raise InputError(f"rope_type={kind!r} is not supported: known are default, linear, dynamic, llama3, yarn, longrope")


def yarn(said: dict[str, Any], longest: int, trained: int) -> YarnScaling:
    """YaRN, whose factor on cosines and sines is given, or follows from how far it reaches."""
    factor = said.get("factor") or longest / trained
    magnitude, some, everywhere = said.get("attention_factor"), said.get("mscale"), said.get("mscale_all_dim")
    if magnitude is None:
        magnitude = grown(factor, some) / grown(factor, everywhere) if some and everywhere else grown(factor)
    return YarnScaling(
        float(factor),
        trained,
        float(said.get("beta_fast") or 32),
        float(said.get("beta_slow") or 1),
        bool(said.get("truncate", True)),
        float(magnitude),
    )


def grown(factor: float, weight: float = 1.0) -> float:
    """How much larger scores should be for a text that is so many times as long (Peng et al. 2023, equation 22)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
