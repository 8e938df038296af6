"""The one exception for input that a caller can correct."""


class InputError(ValueError):
    """Input that cannot be used: the message says what is wrong, with the value, and what to do."""
