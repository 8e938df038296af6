"""The command-line programs: arguments, files, printing."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns at its import where it cannot keep a cache
