"""Let the programs that tests and fuzzers start hear signals."""

import signal


def restore_signals() -> None:
    """Undo what a shell does to its background jobs: they, and all that they start, ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
