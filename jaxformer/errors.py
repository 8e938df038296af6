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


def listed(items: Iterable[object], most: int = 5, room: int = 200) -> str:
    """Return the first items of a list for a message: "a, b, c and 37 more".

    Args:
        items: What to list.
        most: How many items are shown at most.
        room: How many characters they may take; the first one is cut to it.
    """
    names = [str(item) for item in items]
    shown = [shortened(name, room) for name in names[:1]]
    for name in names[1:most]:
        if sum(map(len, shown)) + len(name) > room:
            break
        shown.append(shortened(name, room))
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
