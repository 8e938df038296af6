"""The typed reader of files from outside, and messages that stay short."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxformer.errors import InputError, listed, shortened
from jaxformer.schema import (
    INT32_MAX,
    MAX_BYTES,
    MAX_DEPTH,
    Field,
    choice,
    count,
    experts,
    flag,
    integer,
    layers,
    list_of,
    load_json,
    located,
    mapping,
    nullable,
    number,
    only,
    parse_json,
    probability,
    read,
    text,
)

pytestmark = pytest.mark.smoke

FIELDS: list[tuple[Field, list[Any], list[Any]]] = [
    (integer(0), [0, 5, INT32_MAX], [-1, 1.0, 2.5, "1", True, None, [], INT32_MAX + 1, 10**30, math.nan]),
    (count(3), [1, 3], [0, -16, 2.0, False, None]),
    (count(None), [None, 1], [0, "a"]),
    (layers(2), [1, 200], [0, 10**9]),
    (experts(2), [1, 256], [0, 10**9]),
    (number(1.0), [0, -3, 2.5], [math.nan, math.inf, -math.inf, "1.0", True, None, 1e39, 10**400]),
    (number(1.0, 0.0, 2.0), [0, 2.0, 1], [-1e-9, 2.1]),
    (number(1.0, 0.0, above=True), [1e-9], [0, 0.0, -1]),
    (probability(0.1), [0, 0.0, 0.5], [1, 1.0, -0.1, math.nan, [1], ""]),
    (flag(True), [True, False], [0, 1, "false", None]),
    (flag(None), [None, True], ["x"]),
    (text("a"), ["", "b"], [1, None, ["a"], True]),
    (choice("a", ("a", "b")), ["a", "b"], ["c", 1, None, ["a"], {}]),
    (only(False), [False], [True, 0, None, "false"]),
    (only(0.0), [0, 0.0], [0.1, False, "0", None]),
    (only("x"), ["x"], ["y", 0, None]),
    (list_of(integer(0)), [None, [], [1, 2]], [[-1], ["a"], {"a": 1}, "ab", [None], [0] * (2**20 + 1)]),
    (mapping(), [None, {}, {"a": 1}], [[], "a", 3, True]),
    (nullable(count(8)), [None, 1], [0, "1"]),
]


@pytest.mark.parametrize(("field", "right", "wrong"), FIELDS)
def test_a_field_accepts_its_type_and_range_and_nothing_else(field: Field, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert read({"key": value}, {"key": field}) == {"key": value}
    for value in wrong:
        with pytest.raises(InputError, match=r"^key=.* must be ") as error:
            read({"key": value}, {"key": field})
        assert len(str(error.value)) < 300
    assert read({}, {"key": field}) == {"key": field.default}


def test_numbers_are_read_as_floats() -> None:
    """A compiled program has no integers of more than 32 bits."""
    found = read({"a": 2**40, "b": None}, {"a": number(1.0), "b": number(None), "c": number(3)})
    assert found == {"a": 2.0**40, "b": None, "c": 3.0}
    assert [type(value) for value in found.values()] == [float, type(None), float]


def test_undeclared_keys_are_left_out() -> None:
    assert read({"other": 1}, {"key": count(2)}) == {"key": 2}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[]", "must hold a JSON object, not \\[\\]"),
        (b"null", "must hold a JSON object, not null"),
        (b'"x"', "must hold a JSON object"),
        (b'{"a": "\xe9"}', "is not a text file in UTF-8"),
        (b'{"a": 1, "b": 2, "a": 1}', 'names the key "a" twice'),
        (b'{"x": {"a": 1, "a": 2}}', 'names the key "a" twice'),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", f"nested deeper than {MAX_DEPTH} levels"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"nested deeper than {MAX_DEPTH} levels"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        load_json(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(InputError, match=message):
        parse_json(data)


def test_depth_and_size_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    deep = {"a": json.loads("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))}
    path.write_text(json.dumps(deep))
    assert load_json(path) == deep
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match="at most 67,108,864 are read"):
        load_json(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_json(tmp_path / "config.json")
    with pytest.raises(InputError):
        load_json(tmp_path)


def test_a_message_names_the_file() -> None:
    with pytest.raises(InputError, match=r"^there: a=0 must be"), located("there"):
        read({"a": 0}, {"a": count(1)})


def test_messages_are_one_short_line() -> None:
    assert shortened("a\nb  c") == "a b c"
    long = shortened("x" * 1000 + "END")
    assert (len(long), long[-3:]) == (300, "END")
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(42)) == "0, 1, 2, 3, 4 and 37 more"
    assert listed(["a" * 150, "b" * 150]) == "a" * 150 + " and 1 more"
    assert listed(["a" * 500]) == shortened("a" * 500, 200)
