"""Train a Transformer: python train.py --task copy. The same as `jaxformer train --task copy`."""

import os
import signal
import sys

SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]


def end(number: int, _: object) -> None:
    """End the program during the imports, which take seconds; afterwards jaxformer.interrupts does."""
    try:
        os.write(2, b"stopped, as asked\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    from jaxformer.__main__ import run

    run(["train", *sys.argv[1:]])
