"""Show the fields of settings as flags of a command line."""

from typing import Any

import tyro


def optional(metavar: str, **options: Any) -> Any:
    """Return how --help shows a flag that may be left out: the kind of value that it takes, without the word None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **options)
