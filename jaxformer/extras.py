"""Packages that only parts of jaxformer need: the extras of `pip install 'jaxformer[NAME]'`."""

from importlib.util import find_spec

from jaxformer.errors import InputError, listed

EXTRAS = {
    "train": ("optax", "orbax", "grain", "tqdm"),
    "plots": ("matplotlib",),
    "chat": ("jinja2",),
    "cli": ("tyro", "optax", "orbax", "grain", "tqdm", "matplotlib", "jinja2"),
    "hub": ("huggingface_hub",),
    "translate": ("sacrebleu",),
    "regex": ("interegular",),
    "tensorboard": ("tensorboardX",),
}


class MissingPackageError(InputError, ImportError):
    """A package is not installed: the message says what needs it, and what to install."""


def require_extra(extra: str, what: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: The name of the extra.
        what: What needs it, the subject of the message.

    Raises:
        MissingPackageError: A package is missing.
    """
    missing = [name for name in EXTRAS[extra] if not is_installed(name)]
    if missing:
        raise MissingPackageError(f"{what} needs {listed(missing)}: pip install 'jaxformer[{extra}]'")


def is_installed(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a finder refuses it; ValueError: a module without a spec
        return False
