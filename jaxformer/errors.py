"""The one exception for input that a caller can correct, and how its message stays short."""

from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used: the message says what is wrong, with the value, and what to do."""


def shortened(text: str, most: int = 300) -> str:
    """Return `text` in one line of at most `most` characters; what is cut from its middle is replaced by "..."."""
    line = escaped(" ".join(text.split()))
    if len(line) <= most:
        return line
    head = (most - 3) * 2 // 3
    return f"{line[:head]}...{line[len(line) - (most - 3 - head) :]}"


def escaped(text: str) -> str:
    r"""Return `text` with what is no printable character written as in Python: a line break as \n."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def listed(items: Iterable[object], most: int = 5) -> str:
    """Return the first items of a list for a message: "a, b, c, d, e and 37 more"."""
    names = [shortened(str(item), 60) for item in items]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
