"""What every program does at its edges: short errors, exit statuses, the compilation cache."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax

from jaxformer import interrupts
from jaxformer.cli.streams import discard_output, open_standard_streams
from jaxformer.data.tokenizer import check_text
from jaxformer.errors import InputError, escaped, shortened
from jaxformer.generation import GenerationConfig
from jaxformer.machine import cache_folder

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses, as shells use them
LONGEST = 300  # characters of a message
ADVICE = " go on with: "  # before a command that people may copy
UNDECODED = re.compile("[\udc80-\udcff]")  # what Python makes of bytes of the command line that are not UTF-8
NO_MEMORY = "not enough memory: ask for fewer tokens or a smaller batch, or take a smaller model"
T = TypeVar("T")


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the user can mend becomes one line on standard error and exit status 2, never a traceback.

    A signal ends the process at once, see `jaxformer.interrupts`. An exception that is no fault of the user is a bug
    and keeps its traceback.
    """
    open_standard_streams()
    with interrupts.watched():
        try:
            keep_compiled_programs()
            try:
                main()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            discard_output()
        except (InputError, OSError) as error:
            fail(explain(error), BAD_INPUT)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail(NO_MEMORY, BAD_INPUT)
        except KeyboardInterrupt:  # where `main` runs in a thread, whose signals are not watched
            print(interrupts.STOPPED, file=sys.stderr)
            sys.exit(INTERRUPTED)


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Call `main` as `run` does, then end the process although threads of a failed save may still be busy."""
    status: Any = 0
    try:
        run(main)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or nobody reads
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def fail(message: str, status: int) -> NoReturn:
    """End the program with a message on standard error and an exit status."""
    with contextlib.suppress(OSError):
        problem, advice, command = message.partition(ADVICE)
        command = advice + escaped(command)  # half a command is of no use: what comes before it is cut
        room = max(LONGEST - len(command), LONGEST // 3)
        print(shortened(f"error: {problem}", room) + command, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: at its end Python would try once more, and complain
        discard_output()
    sys.exit(status)


def explain(error: Exception) -> str:
    """Return the text of an error, without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename or "")
        return f"{escaped(name)}: {error.strerror}" if name else error.strerror
    return str(error) or type(error).__name__


def parse(arguments: type[T], argv: list[str], **options: Any) -> T:
    """Parse the command line into an `arguments` dataclass; the options are those of `tyro.cli`.

    Raises InputError with the sentence that tyro would print in a box.
    """
    import tyro  # not needed to name a missing package

    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(arguments, args=argv, config=config, **options)
    except SystemExit as stop:
        if stop.code != BAD_INPUT:
            raise
        wrong = shortened(first_sentence(printed.getvalue()), 250)
        raise InputError(f"{wrong} (--help shows all flags)") from None


def first_sentence(box: str) -> str:
    """Return what is wrong, and the flag that was perhaps meant, from the box that tyro draws around its advice."""
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
        with contextlib.suppress(OSError, InputError):  # where nothing can be kept, every start compiles
            cache = cache_folder()
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(cache))


def argument_text(name: str, text: str) -> str:
    """Return a text from the command line. Raises InputError where its bytes are not UTF-8."""
    found = UNDECODED.search(text)
    if found:
        byte = ord(found.group()) - 0xDC00
        raise InputError(f"{name} is not text in UTF-8: character {found.start() + 1} is the byte 0x{byte:x}")
    return check_text(text)


def search_name(config: GenerationConfig) -> str:
    """Return the kind of search of some settings, in words."""
    search = f"beam search with {config.num_beams} beams" if config.num_beams > 1 else "one sequence at a time"
    if config.do_sample and config.temperature > 0:
        return f"sampling at temperature {config.temperature}, {search}"
    return search if config.num_beams > 1 else "greedy"
