"""Typed reading of JSON from outside the program.

A file from outside is data of unknown shape. `load_json` bounds its size and depth and refuses what is not an object in
UTF-8; a schema declares once which type and range each key has, and `read` refuses everything else with key and value.
"""

import json
import math
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jaxformer.errors import InputError, shortened

MAX_BYTES = 64 * 2**20  # the largest index and vocabulary files of public checkpoints have some 10 MB
MAX_DEPTH = 64
INT32_MAX = 2**31 - 1
MAX_LAYERS = 4096  # per stack; the deepest public models have fewer than 200
MAX_EXPERTS = 65_536


@dataclass(frozen=True)
class Field:
    """Values that one key of an outside file may hold.

    Attributes:
        default: The value where the file lacks the key.
        expected: What the value must be, in words that continue "must be".
        accepts: Whether a value is of that type and in that range.
        convert: What makes of an accepted value, other than null, the one that `read` returns; None: it is that one.
    """

    default: Any
    expected: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] | None = None


Schema = Mapping[str, Field]


def integer(default: int | None, least: int = 0, most: int = INT32_MAX) -> Field:
    """Declare a whole number from `least` to `most`; null is accepted where it is the default."""
    bounds = f"of at least {least}" if most == INT32_MAX else f"from {least} to {most}"
    return _optional(default, f"a whole number {bounds}", lambda value: is_integer(value) and least <= value <= most)


def count(default: int | None, most: int = INT32_MAX) -> Field:
    """Declare a whole number of at least 1, such as a width or a number of heads."""
    return integer(default, 1, most)


def layers(default: int | None, least: int = 1) -> Field:
    """Declare a number of layers."""
    return integer(default, least, MAX_LAYERS)


def experts(default: int | None) -> Field:
    """Declare a number of experts."""
    return integer(default, 1, MAX_EXPERTS)


def number(default: float | None, least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> Field:
    """Declare a finite number from `least` to `most`, or above `least` itself. It is read as a float.

    An integer of more than 32 bits would overflow where a program is compiled.
    """
    lower = f" {'above' if above else 'of at least'} {least:g}" if least > -math.inf else ""
    upper = f" and at most {most:g}" if most < math.inf else ""

    def accepts(value: Any) -> bool:
        return is_number(value) and least <= value <= most and not (above and value == least)

    return _optional(default, f"a number{lower}{upper}", accepts, float)


def probability(default: float | None) -> Field:
    """Declare a rate of dropout: at least 0 and below 1."""
    return _optional(default, "a number of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)


def flag(default: bool | None) -> Field:
    """Declare true or false."""
    return _optional(default, "true or false", lambda value: isinstance(value, bool))


def text(default: str | None) -> Field:
    """Declare a string."""
    return _optional(default, "a string", lambda value: isinstance(value, str))


def choice(default: str | None, names: Collection[str]) -> Field:
    """Declare one of several names."""
    known = ", ".join(map(repr, names))
    return _optional(default, f"one of {known}", lambda value: isinstance(value, str) and value in names)


def only(value: Any) -> Field:
    """Declare the one value that is supported."""

    def accepts(found: Any) -> bool:
        return found == value and isinstance(found, bool) == isinstance(value, bool)

    return Field(value, f"{json.dumps(value)}: nothing else is supported", accepts)


def list_of(item: Field, default: Any = None, most: int = 2**20) -> Field:
    """Declare a list whose items are all as `item` says; null is accepted where it is the default."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= most and all(map(item.accepts, value))

    return _optional(default, f"a list of at most {most} items, each {item.expected}", accepts)


def mapping(default: Any = None) -> Field:
    """Declare an object, whose keys somebody else reads; null is accepted where it is the default."""
    return _optional(default, "an object", lambda value: isinstance(value, dict))


def nullable(field: Field) -> Field:
    """Declare the same, or null."""
    accepts = field.accepts
    return replace(field, expected=f"{field.expected}, or null", accepts=lambda value: value is None or accepts(value))


def _optional(
    default: Any, expected: str, accepts: Callable[[Any], bool], convert: Callable[[Any], Any] | None = None
) -> Field:
    """Return a field that also accepts null where null is what an absent key means."""
    field = Field(default, expected, accepts, convert)
    return nullable(field) if default is None else field


def is_integer(value: Any) -> bool:
    """Return whether a value is a whole number and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that float32 can hold."""
    return (is_integer(value) or isinstance(value, float)) and abs(value) < 3e38


def read(values: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the value of each key of the schema, the default where `values` lacks it.

    Args:
        values: An object of an outside file. Keys that the schema does not know are left out: nobody may read them.
        schema: What the known keys may hold.

    Raises:
        InputError: The first value that is not what its key may hold.
    """
    for key, field in schema.items():
        if key in values and not field.accepts(values[key]):
            raise InputError(f"{key}={shown(values[key])} must be {field.expected}")
    found = {key: values.get(key, field.default) for key, field in schema.items()}
    convert = {key: field.convert for key, field in schema.items() if field.convert and found[key] is not None}
    return found | {key: function(found[key]) for key, function in convert.items()}


def load_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: The file is missing, larger than `MAX_BYTES`, not UTF-8, not JSON, deeper than `MAX_DEPTH`, names a
            key twice, or holds no object.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe might have no end
            raise InputError(f"{path} is no file: give one that holds a JSON object")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with located(path):
        return parse_json(data)


def parse_json(data: bytes | str) -> dict[str, Any]:
    """Return the object that a JSON text holds. Raises InputError as `load_json`, without the name of a file."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        values = json.loads(text, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError:
        raise InputError("is not a text file in UTF-8") from None
    except RecursionError:
        raise InputError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"must hold a JSON object, not {shown(values)}")
    if depth(values) > MAX_DEPTH:
        raise InputError(f"is nested deeper than {MAX_DEPTH} levels")
    return values


@contextmanager
def located(where: Path | str) -> Iterator[None]:
    """Put the name of a file before the message of an InputError, which is cut to the length of a line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {shortened(str(error))}") from None


def shown(value: Any) -> str:
    """Return a value as JSON for a message, cut to a length that a line can hold."""
    try:
        return shortened(json.dumps(value, ensure_ascii=False), 60)
    except (TypeError, ValueError, RecursionError):
        return shortened(repr(value), 60)


def depth(value: Any) -> int:
    """Return how deep objects and lists are nested, without recursion."""
    deepest, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        deepest += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a key that occurs twice is ambiguous, because readers differ in which one they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InputError(f"names the key {shown(twice)} twice: leave one out")
    return values


def check_range(name: str, value: int, least: int, most: int = INT32_MAX) -> None:
    """Raise InputError unless a whole number is from `least` to `most`."""
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {shown(value)}")
    if value > most:
        raise InputError(f"{name} must be at most {most}, not {shown(value)}")


def conforms(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type, such as `int | None`, `Literal["a", "b"]`, `tuple[int, ...]`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(conforms(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin is tuple:
        hints = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[1:] == (...,) else arguments
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(conforms, value, hints))
    if hint is float:
        return is_number(value)
    if hint is int:
        return is_integer(value) and 0 <= value < 2**32  # no size and no seed is larger
    return hint is Any or isinstance(value, hint)


def require(values: Mapping[str, Any], *keys: str) -> None:
    """Raise InputError if one of the keys is absent."""
    for key in keys:
        if key not in values:
            raise InputError(f"lacks the key {key!r}")
