"""A task of your own: double a number, digit by digit.

    python train.py --task examples/own_task.py:Double
    python generate.py --task examples/own_task.py:Double --input "2 5 7"
    python -m jaxformer visualize --task examples/own_task.py:Double --input "2 5 7"

A task is a class. `SequenceTask` brings the model, random sources, the loss, evaluation on sources that training never
draws, beam search and pictures; a class derived from it says what the right answer is. A task with other data derives
from `jaxformer.tasks.Task` and defines more.
"""

import numpy as np

from jaxformer.data import SPECIAL, Symbols
from jaxformer.tasks import SequenceSettings, SequenceTask


class Double(SequenceTask):
    """Say twice the number whose digits the source has: 2 5 7 becomes 0 5 1 4."""

    # The symbols 0 to 9, in sources of up to 8 digits. All flags have these values where the command line gives none.
    defaults = SequenceSettings(text=Symbols(symbols=10, max_length=8), steps=400)

    @property
    def max_answer_length(self) -> int:
        """One digit more than the longest source."""
        return self.text.max_length + 1

    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the digits of the doubled number; symbol number i has the token id SPECIAL + i."""
        digits = source - SPECIAL
        doubled = 2 * int("".join(map(str, digits)))
        width = len(digits) + 1
        return np.array([SPECIAL + int(digit) for digit in str(doubled).zfill(width)])
