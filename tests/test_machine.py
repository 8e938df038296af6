"""What is asked of the machine: memory that stays, and a folder of the user."""

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest

from jaxformer.machine import MALLOC, keep_freed_memory

pytestmark = pytest.mark.smoke


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What is asked of a C library."""
    found: dict[int, int] = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=found.__setitem__))
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    return found


def test_freed_memory_is_kept(asked: dict[int, int]) -> None:
    keep_freed_memory()
    assert asked == MALLOC


def test_malloc_that_people_tuned_is_left_alone(asked: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    keep_freed_memory()
    assert not asked


def test_other_systems_and_libraries_are_left_alone(asked: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl, under another name, has no mallopt
    keep_freed_memory()
    assert not asked
