"""Rotary positions as a `config.json` says them, today under rope_parameters or once under other names."""

import math
from collections.abc import Callable
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
from jaxformer.schema import Schema, count, flag, integer, list_of, located, mapping, number, read, text

# What a file may say beside its other keys.
ROPE: Schema = {
    "rope_parameters": mapping(),
    "rope_scaling": mapping(),
    "rope_theta": number(None, 1.0, above=True),
    "partial_rotary_factor": number(None, 0.0, 1.0, above=True),
    "max_position_embeddings": count(2048),
    "original_max_position_embeddings": integer(None, 2),  # whose logarithm LongRoPE divides by
}
POSITIVE = number(None, 0.0, above=True)
FACTORS = list_of(number(1.0, 0.0, above=True), None, most=4096)
# What the object under rope_parameters may say.
PARAMETERS: Schema = {
    "rope_type": text(None),
    "type": text(None),
    "rope_theta": number(None, 1.0, above=True),
    "partial_rotary_factor": number(None, 0.0, 1.0, above=True),
    "factor": POSITIVE,
    "alpha": POSITIVE,
    "original_max_position_embeddings": integer(None, 2),
    "attention_factor": POSITIVE,
    "beta_fast": POSITIVE,
    "beta_slow": POSITIVE,
    "mscale": number(None, 0.0),
    "mscale_all_dim": number(None, 0.0),
    "truncate": flag(True),
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "short_factor": FACTORS,
    "long_factor": FACTORS,
}
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def rope(
    hf: dict[str, Any],
    width: int,
    *,
    theta: float = 10000.0,
    parameters: dict[str, Any] | None = None,
    layout: RotaryLayout = "halves",
    partial: bool = False,
) -> Rope:
    """Return the rotary positions of heads of this width.

    Args:
        hf: A config.json, read by a schema that includes `ROPE`.
        width: Width H of a head.
        theta: The base where the file gives none.
        parameters: Parameters of these layers. None: those of the whole file.
        layout: Which dimensions of a head make a pair.
        partial: Whether the family rotates a part of each head; transformers ignores the factor in all others.

    Raises:
        InputError: The scaling is unknown, or a number is missing, of the wrong type or out of range.
    """
    given = rope_parameters(hf) if parameters is None else parameters
    base, part = (first_given(given[key], hf.get(key)) for key in ("rope_theta", "partial_rotary_factor"))
    how = scaling(hf, given)
    rotated = int(width * (1.0 if part is None else part))
    if rotated != width and not partial:
        if how is not None:
            raise InputError(f"partial_rotary_factor={part} is not supported in this family with scaled positions")
        rotated = width
    if rotated < 2 or rotated % 2 or (rotated == 2 and isinstance(how, DynamicScaling)):
        raise InputError(
            f"rotary positions turn an even number of dimensions (with rope_type='dynamic' more than 2), not {rotated} "
            f"of {width}: change head_dim, num_attention_heads, hidden_size or partial_rotary_factor"
        )
    if isinstance(how, LongRopeScaling) and not len(how.short) == len(how.long) == rotated // 2:
        raise InputError(f"short_factor and long_factor must have {rotated // 2} numbers, one for each pair")
    return Rope(float(theta if base is None else base), None if rotated == width else rotated, layout, how)


def first_given(*values: Any) -> Any:
    """Return the first value that is given, None if none is."""
    return next((value for value in values if value is not None), None)


def rope_parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """Return what the file says of rotary positions in one place; rope_scaling counts first, as in transformers."""
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    return checked_parameters(hf.get(key) or {}, key)


def checked_parameters(given: Any, key: str) -> dict[str, Any]:
    """Return rotary parameters with all known keys. Raises InputError for what is not as it should be, naming `key`."""
    with located(key):
        if not isinstance(given, dict):
            raise InputError("must be an object")
        return read(given, PARAMETERS)


def ropes_by_layer_type(hf: dict[str, Any], width: int, *, theta: float, near: float) -> Callable[[bool], Rope]:
    """Return what gives the rotary positions of layers with a window (True) and without one (False).

    Args:
        hf: A config.json, whose rope_parameters has an object for each type of layer.
        width: Width H of a head.
        theta: The base of layers without a window, where the file gives none.
        near: The base of layers with a window, where rope_parameters gives none for them.

    Raises:
        InputError: rope_parameters says something of anything else.
    """
    given = hf["rope_parameters"] or {}
    if unknown := sorted(given.keys() - {"full_attention", "sliding_attention"}):
        raise InputError(f"rope_parameters has {unknown[0]!r}: it must say it of full_attention or sliding_attention")
    # In old files rope_scaling is for the full layers alone.
    everywhere = given.get("full_attention") or {}
    if isinstance(everywhere, dict):
        everywhere = everywhere | (hf["rope_scaling"] or {})
    full = checked_parameters(everywhere, "rope_parameters")
    windowed = checked_parameters(given.get("sliding_attention") or {}, "rope_parameters")
    own = {False: (full, {}), True: (windowed, {"rope_theta": near})}

    def rope_of(slides: bool) -> Rope:
        parameters, instead = own[slides]
        parameters = parameters | {"truncate": True}  # which transformers does not look for inside a type of layers
        return rope(hf | instead, width, parameters=parameters, theta=theta)

    return rope_of


def rope_kind(hf: dict[str, Any]) -> str:
    """Return the type of rotary positions that the file names, as it names it or as today's files do."""
    given = rope_parameters(hf)
    kind = first_given(given["rope_type"], given["type"], "default")
    # What Phi-3's first files called it.
    return "longrope" if kind in ("su", "yarn") and given["long_factor"] is not None else kind


def scaling(hf: dict[str, Any], given: dict[str, Any]) -> RopeScaling | None:
    """Return how the positions reach beyond the length of training; None: they do not."""
    kind, longest = first_given(given["rope_type"], given["type"], "default"), hf["max_position_embeddings"]
    key = "original_max_position_embeddings"
    trained = first_given(hf.get(key), given[key], longest)
    if kind in ("su", "yarn") and given["long_factor"] is not None:
        kind = "longrope"  # what Phi-3's first files called it
    if missing := [key for key in NEEDED.get(kind, ()) if given[key] is None]:
        raise InputError(f"rope_type={kind!r} needs {', '.join(missing)} beside it")
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(float(given["factor"]))
        case "dynamic":
            return DynamicScaling(float(given["factor"]), longest)
        case "llama3":
            low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
            if low >= high:
                raise InputError(f"low_freq_factor={low:g} must be below high_freq_factor={high:g}")
            return Llama3Scaling(float(given["factor"]), low, high, trained)
        case "yarn":
            return yarn(given, longest, trained)
        case "longrope":
            factor = given["factor"] or longest / trained
            attention_factor = given["attention_factor"]
            if attention_factor is None:
                attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
            return LongRopeScaling(tuple(given["short_factor"]), tuple(given["long_factor"]), trained, attention_factor)
    known = "default, linear, dynamic, llama3, yarn, longrope"
    raise InputError(f"rope_type={kind!r} is not supported: known are {known}")


def yarn(given: dict[str, Any], longest: int, trained: int) -> YarnScaling:
    """Return YaRN, whose factor on cosines and sines is given, or follows from how far it reaches."""
    factor = given["factor"] or longest / trained
    attention_factor, some, everywhere = given["attention_factor"], given["mscale"], given["mscale_all_dim"]
    if attention_factor is None:
        attention_factor = grown(factor, some) / grown(factor, everywhere) if some and everywhere else grown(factor)
    return YarnScaling(
        float(factor),
        trained,
        float(given["beta_fast"] or 32),
        float(given["beta_slow"] or 1),
        given["truncate"],
        float(attention_factor),
    )


def grown(factor: float, weight: float = 1.0) -> float:
    """Return how much larger scores should be for a text `factor` times as long (Peng et al. 2023, equation 22)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
