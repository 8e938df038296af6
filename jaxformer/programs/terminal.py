"""What every program does at its edges: short errors, exit statuses, the compilation cache."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from jaxformer.errors import InputError

BAD_INPUT = 2


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the user can mend becomes one line on standard error and exit status 2, never a traceback."""
    keep_compiled_programs()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, so that the second start is quick."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxformer"
        jax.config.update("jax_compilation_cache_dir", str(cache))
