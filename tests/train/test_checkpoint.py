"""Checkpoints: what comes back, what is kept, and what is never taken for one."""

import errno
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.train import Checkpoints

STATE = {"weight": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(4)}


def save(folder: Path, *steps: int) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        state = {"weight": STATE["weight"] + step, "step": jnp.int32(step)}
        checkpoints.save(step, state, {"next_index": 10 * step}, loss=abs(step - 2.0))
    checkpoints.wait()
    checkpoints.close()


def test_state_and_position_come_back(tmp_path: Path) -> None:
    save(tmp_path, 1, 3)
    state, position = Checkpoints(tmp_path, writable=False).restore(STATE)
    np.testing.assert_array_equal(state["weight"], STATE["weight"] + 3)
    assert (int(state["step"]), position) == (3, {"next_index": 30})


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()) == [2, 4, 5]


def test_a_half_written_checkpoint_is_ignored_and_cleaned(tmp_path: Path) -> None:
    save(tmp_path, 1, 3)
    half = tmp_path / "7.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "3", half)
    reader = Checkpoints(tmp_path, writable=False)
    assert reader.latest == 3
    assert half.exists()
    writer = Checkpoints(tmp_path)
    assert writer.latest == 3
    assert not half.exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for path in (tmp_path / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"3 is damaged"):
        Checkpoints(tmp_path, writable=False).restore(STATE)


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete checkpoint"):
        Checkpoints(tmp_path).restore(STATE)


def test_a_save_is_not_changed_by_the_steps_that_follow(tmp_path: Path) -> None:
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"weight": jnp.zeros((499, 1009)), "step": jnp.int32(0)}
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(1, 4):
            checkpoints.save(number, state, {}, loss=0.0)
            for _ in range(5):
                state = step(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(state)
    assert int(restored["step"]) == 10
    np.testing.assert_array_equal(restored["weight"], 10.0)


def test_a_full_disk_is_noticed_before_a_save_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match=r"no space left.*0\.0 MB free.*step 1"):
        checkpoints.save(2, STATE, {}, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for number, loss in enumerate([2.0, 1.0, math.inf, 3.0, math.inf, 5.0], start=1):
            checkpoints.save(number, STATE, {}, loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.manager, "save", full)
    with pytest.raises(OSError, match=r"no space left.*last complete checkpoint: step 1"):
        checkpoints.save(2, STATE, {}, 0.0)
    assert Checkpoints(tmp_path, writable=False).latest == 1
