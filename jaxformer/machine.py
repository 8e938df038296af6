"""What the machine is asked for: a folder for files that can be made again, and memory that stays."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from jaxformer.errors import InputError

# Parameters of glibc's mallopt, by their numbers in malloc.h: the freed end of the heap is never given back, it grows
# by 64 MB, no block is a mapping of its own, and threads share one heap.
MALLOC = {-1: 2**31 - 1, -2: 64 * 2**20, -4: 0, -8: 1}


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step of training, in place of giving it back to the system.

    On CPUs XLA allocates the temporaries of a program anew at every call, and pages that were given back come as zeros,
    which the system writes again in every step. Memory then stays at its peak until the process ends: this is for
    programs that train. Nothing happens on other systems and C libraries, and where the environment tunes malloc.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform == "linux" and not tuned:
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for parameter, value in MALLOC.items():
                mallopt(parameter, value)


def cache_folder() -> Path:
    """Return the folder for files that can be made again. Raises InputError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxformer"
    except RuntimeError:
        raise InputError("this user has no home folder to keep files in: set XDG_CACHE_HOME to a folder") from None
