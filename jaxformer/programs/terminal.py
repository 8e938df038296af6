"""What every program does at its edges: short errors, exit statuses, the compilation cache."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError

BYTE_ORDER_MARK = "\ufeff"  # what some editors begin a file with
BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses, as shells use them
T = TypeVar("T")


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the user can mend becomes one line on standard error and exit status 2, never a traceback."""
    keep_compiled_programs()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: not enough memory: ask for fewer tokens or a smaller batch, or take a smaller model",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped, as asked", file=sys.stderr)
        sys.exit(INTERRUPTED)


def explain(error: Exception) -> str:
    """What an error says, without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def parse(arguments: type[T], argv: list[str], **options: Any) -> T:
    """The command line as an `arguments` dataclass; the options are those of `tyro.cli`.

    Raises InputError with the sentence that tyro would print in a box.
    """
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(arguments, args=argv, config=config, **options)
    except SystemExit as stop:
        if stop.code != BAD_INPUT:
            raise
        raise InputError(f"{first_sentence(said.getvalue())} (--help shows all flags)") from None


def optional(metavar: str, **options: Any) -> Any:
    """How --help shows a flag that may be left out: what kind of value it takes, and no word of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **options)


def first_sentence(box: str) -> str:
    """What is wrong, and the flag that was perhaps meant, from the box that tyro draws around its advice."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    ruled = "\n".join("" if set(line) <= set("─-╭╮╰╯+") else line for line in lines)
    wrong, *more = [" ".join(part.split()) for part in re.split(r"\n\n+", ruled.strip())]
    meant = re.match(r"(Perhaps you meant: --\S+)", more[0]) if more else None
    return re.sub(r"^Error parsing [a-z._]+: ", "", wrong) + (f". {meant[1]}" if meant else "")


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, so that the second start is quick.

    A cached program that a killed process or a full disk left unfinished is compiled again, without a warning.
    """
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache entry", UserWarning)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = cache_folder()
        with contextlib.suppress(OSError):  # where nothing can be kept, every start compiles
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(cache))


def cache_folder() -> Path:
    """Where the user's machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxformer"


def read_lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1; "-" is standard input.

    Raises InputError where there is none, and for what is not text.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not a text file in UTF-8") from None
    text = text.removeprefix(BYTE_ORDER_MARK)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no input: write one sequence per line")
    return lines


def search_name(config: GenerationConfig) -> str:
    """How the settings search, in words."""
    search = f"beam search with {config.num_beams} beams" if config.num_beams > 1 else "one sequence at a time"
    if config.do_sample and config.temperature > 0:
        return f"sampling at temperature {config.temperature}, {search}"
    return search if config.num_beams > 1 else "greedy"
