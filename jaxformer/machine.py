"""Files that a machine keeps for its user."""

import os
from pathlib import Path

from jaxformer.errors import InputError


def cache_folder() -> Path:
    """Return the folder for files that can be made again. Raises InputError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxformer"
    except RuntimeError:
        raise InputError("this user has no home folder to keep files in: set XDG_CACHE_HOME to a folder") from None
