"""The docstrings of the public functions and classes: each argument and field has its line."""

import dataclasses
import inspect
import re
from typing import Any

import pytest

import jaxformer

NAMES = [name for name in jaxformer.__all__ if callable(getattr(jaxformer, name))]


def arguments(documented: Any) -> set[str]:
    """The names that a reader wants explained: the parameters of a function, the fields of a dataclass."""
    if dataclasses.is_dataclass(documented):
        return {field.name for field in dataclasses.fields(documented)}
    if inspect.isclass(documented):
        return set(inspect.signature(documented.__init__).parameters) - {"self", "args", "kwargs"}
    return set(inspect.signature(documented).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_field_has_its_line(name: str) -> None:
    documented = getattr(jaxformer, name)
    text = inspect.getdoc(documented) or ""
    if inspect.isclass(documented) and issubclass(documented, Exception):
        assert text
        return
    explained = re.findall(r"^ +\**(\w+)(?: \[.*\])?: \S", text, re.MULTILINE)
    assert arguments(documented) <= set(explained)
