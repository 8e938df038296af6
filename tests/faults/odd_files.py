"""Files, folders and values that a program does not expect, each made on the spot under a name of its own."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES = [
    *("", " ", "0", "-1", "1", "2", "1.5", "-0.0", "nan", "NaN", "inf", "-inf", "1e400", "1e-400", "2147483647"),
    *("2147483648", "-2147483649", "9223372036854775808", "9" * 400, "9" * 5000, "true", "None", "null", "[]", "{}"),
    *("\u00e9", "\udcff", "a\udce9b", "\x1b[31mred", "a\nb", "a\tb", "\x07", "\u202ex", "--", "-", "-x", "x" * 5000),
    *("0x10", "1_000", "\uff11", "\u0663", "1,5", "1 2", "'", '"', "$(ls)", "%s%n", "../..", "/", "~", "=", "=1"),
]
NAMES = ["a\nb", "\x1b[2Jx", "caf\udce9", "\u00fc\u4e2d", "with space", "-rf", "x" * 200, "%d", "tab\t", "\u202egnp"]
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "binary": bytes(range(256)) * 4,
    "bom": b"\xef\xbb\xbfabc\nbad cab\n",
    "crlf": b"abc\r\nbad cab\r\n",
    "cr": b"abc\rbad cab\r",
    "nul": b"a\0b\nc\0\0\n",
    "utf16": "abc\nbad\n".encode("utf-16"),
    "utf16le": "abc\nbad\n".encode("utf-16-le"),
    "latin1": b"caf\xe9\nabc\n",
    "surrogate": b"a\xed\xa0\x80b\n",
    "late": b"abc\n" * 3000 + b"\xff\n",
    "no-end": b"abc",
    "long-line": b"abc def " * 25_000 + b"\n",
    "escapes": b"\x1b[31ma\x07b\n",
    "unicode": "\u00fc\u4e2d\U0001f600\u202e\u2028x\n".encode(),
    "numbers": b"1 2 3\n9 9 9\n1\n",
    "symbols": b"1 2 3\n5 4\n",
    "huge-number": b"9" * 5000 + b"\n",
    "good": b"abc\nbad cab\n",
    "text": b"The cat sat on the mat; nobody minded it.\n" * 40,
}
PATHS = ["/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc", "/", ".", "..", "", "nowhere/at/all", "\0"]
JSONS = ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"a": 1, "a": 2}', "\ufeff{}", '{"a": NaN}', "{}", "\0"]
OTHERS: list[Any] = [None, True, False, 0, -1, 1.5, 2**63, -(2**63), 1e308, "", "x", "x" * 5000, "a\nb", "\ud800", "\0"]
OTHERS += [[], {}, [1], {"a": 1}, [[]] * 3, "NaN", float("nan"), float("inf")]


def odd_path(rng: random.Random, folder: Path, reading: bool = True) -> str:
    """A path that is no ordinary file, or an ordinary file of odd content or name."""
    kind = rng.choice(["content", "content", "name", "path", "folder", "loop", "dangling", "through", "long"])
    if kind == "content" and reading:
        name = rng.choice(sorted(CONTENTS))
        (folder / f"{name}.txt").write_bytes(CONTENTS[name])
        return f"{name}.txt"
    if kind == "folder":
        (folder / "a-folder").mkdir(exist_ok=True)
        return "a-folder"
    if kind in ("loop", "dangling"):
        (folder / kind).unlink(missing_ok=True)
        (folder / kind).symlink_to(kind if kind == "loop" else "not-there")
        return kind
    if kind == "through":
        (folder / "a-file").write_bytes(b"abc\n")
        return "a-file/below"
    if kind == "long":
        return rng.choice(["y" * 256, "y/" * 3000])
    if kind == "path":
        return rng.choice([path for path in PATHS if path != "\0"])
    name = rng.choice(NAMES)
    if reading:
        Path(os.fsdecode(os.fsencode(folder)), name).write_bytes(CONTENTS["good"])
    return name


def odd_jsonl(rng: random.Random, folder: Path) -> str:
    """A .jsonl file with a line that is none."""
    line = rng.choice(
        ['{"text": 3}', "[1]", '{"other": "x"}', "{", "[" * 100_000, '{"text": "\\ud800"}', "null", '{"text": ""}']
    )
    (folder / "rows.jsonl").write_text('{"text": "The cat sat on the mat; nobody minded it."}\n' * 9 + line + "\n")
    return "rows.jsonl"


def damage_json(rng: random.Random, path: Path) -> str:
    """Put another value at a random place of a JSON file, or other text in place of all; what was done."""
    if rng.random() < 0.25:
        text = rng.choice(JSONS)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"{path.name} holds {text[:20]!r}"
    values = json.loads(path.read_text())
    parents: list[tuple[Any, Any]] = []
    collect(values, parents)
    where, key = rng.choice(parents)
    if rng.random() < 0.2 and isinstance(where, dict):
        del where[key]
        said = f"lacks {key!r}"
    else:
        where[key] = rng.choice(OTHERS)
        said = f"has {key!r}: {str(where[key])[:20]!r}"
    path.write_text(json.dumps(values))
    return f"{path.name} {said}"


def collect(value: Any, found: list[tuple[Any, Any]]) -> None:
    """All places of a JSON value, as pairs of what holds it and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        found.append((value, key))
        collect(value[key], found)


def damage_bytes(rng: random.Random, path: Path) -> str:
    """Truncate, empty, remove a file, or replace it by a folder or by noise; what was done."""
    data = path.read_bytes()
    changes: dict[str, Callable[[], object]] = {
        "is cut": lambda: path.write_bytes(data[: rng.randrange(len(data) + 1)]),
        "is empty": lambda: path.write_bytes(b""),
        "is missing": path.unlink,
        "is a folder": lambda: (path.unlink(), path.mkdir()),
        "is noise": lambda: path.write_bytes(rng.randbytes(64)),
        "is a device": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
    }
    name = rng.choice(sorted(changes))
    changes[name]()
    return f"{path.name} {name}"
