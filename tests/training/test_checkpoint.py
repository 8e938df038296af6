"""Checkpoints: what comes back, what is kept, and what is never taken for one."""

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxformer import InputError
from jaxformer.training import Checkpoints
from jaxformer.training.storage import SEAL, Writer

STATE = {"weight": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(4)}


def save(folder: Path, *steps: int) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        state = {"weight": STATE["weight"] + step, "step": jnp.int32(step)}
        checkpoints.save(step, state, {"next_index": 10 * step}, loss=abs(step - 2.0))
    checkpoints.wait()
    checkpoints.close()


@pytest.mark.smoke
def test_state_and_position_come_back(tmp_path: Path) -> None:
    save(tmp_path, 1, 3)
    state, position = Checkpoints(tmp_path, writable=False).restore(STATE)
    np.testing.assert_array_equal(state["weight"], STATE["weight"] + 3)
    assert (int(state["step"]), position) == (3, {"next_index": 30})


@pytest.mark.smoke
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


def found(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def empty(folder: Path) -> None:
    """Empty all files of a checkpoint's state."""
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_the_best_is_known_to_later_processes(tmp_path: Path) -> None:
    for steps in ([2, 3], [4], [5, 6], [7]):
        save(tmp_path, *steps)
    assert found(tmp_path) == ["2", "6", "7"]


def test_of_equally_good_ones_the_first_is_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, STATE, {}, loss=1.0)
    assert found(tmp_path) == ["1", "4", "5"]


def save_as_before(folder: Path, *steps: int) -> None:
    """Save as version 0.1.0 did: no checksums, no loss on disk, and what a process did not write itself stays."""
    with ocp.CheckpointManager(folder) as manager:
        for step in steps:
            items = {"state": ocp.args.StandardSave(STATE), "position": ocp.args.JsonSave({"next_index": step})}
            manager.save(step, args=ocp.args.Composite(**items))


def test_checkpoints_without_checksums_open_and_are_pruned(tmp_path: Path) -> None:
    save_as_before(tmp_path, 1, 2, 3, 4)
    state, position = Checkpoints(tmp_path).restore(STATE)
    np.testing.assert_array_equal(state["weight"], STATE["weight"])
    assert position == {"next_index": 4}
    save(tmp_path, 5)
    assert found(tmp_path) == ["4", "5"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save(tmp_path, 3)
    empty(tmp_path / "3")
    with pytest.raises(InputError, match=r"3 is damaged \(.*\) and there is no older one"):
        Checkpoints(tmp_path, writable=False).restore(STATE)
    assert found(tmp_path) == ["3"]


def test_an_older_checkpoint_is_opened_in_place_of_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 5)
    empty(tmp_path / "5")
    state, position = Checkpoints(tmp_path, writable=False).restore(STATE)
    assert (int(state["step"]), position) == (3, {"next_index": 30})
    why = "state/_METADATA does not match its checksum"
    assert capsys.readouterr().err == f"checkpoint 5 is damaged ({why}): opening 3\n"
    assert found(tmp_path) == ["3", "5"]


def test_who_goes_on_from_an_older_checkpoint_can_save_the_step_again(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        save(tmp_path, 3, 5)
        empty(tmp_path / "5")
        with Checkpoints(tmp_path, notify=said.append) as checkpoints:
            assert int(checkpoints.restore(STATE)[0]["step"]) == 3
        shutil.rmtree(tmp_path / "3")
    assert [line.rpartition(", ")[2] for line in said] == [
        "its folder is now 5.damaged",
        "its folder is now 5.damaged-2",
    ]
    save(tmp_path, 5, 6, 7)
    assert found(tmp_path) == ["5", "5.damaged", "5.damaged-2", "6", "7"]


def delete_position(folder: Path) -> None:
    shutil.rmtree(folder / "position")


def delete_seal(folder: Path) -> None:
    (folder / SEAL).unlink()


def lie_in_seal(folder: Path) -> None:
    (folder / SEAL).write_text(json.dumps({"files": {"../3/state/_METADATA": [1, 2]}}))


@pytest.mark.parametrize("harm", [delete_position, delete_seal, lie_in_seal, shutil.rmtree])
def test_what_is_missing_is_damage(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    save(tmp_path, 3, 5)
    harm(tmp_path / "5")
    assert int(Checkpoints(tmp_path, writable=False).restore(STATE)[0]["step"]) == 3


@pytest.mark.smoke
def test_a_flipped_bit_in_any_file_is_damage(tmp_path: Path, rng: np.random.Generator) -> None:
    save(tmp_path, 3, 5)
    ignored = ("commit_success.txt", "_CHECKPOINT_METADATA")
    paths = [path for path in (tmp_path / "5").rglob("*") if path.is_file() and path.name not in ignored]
    assert len(paths) > 5
    for path in paths:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        intact = path.read_bytes()
        path.write_bytes(bytes(data))
        state, _ = Checkpoints(tmp_path, writable=False, notify=lambda _: None).restore(STATE)
        assert int(state["step"]) == 3, path
        path.write_bytes(intact)


def test_a_checkpoint_of_another_model_is_no_damage(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(InputError, match="3 holds another state than this model has"):
        Checkpoints(tmp_path).restore(STATE | {"weight": jnp.zeros((3, 2))})
    assert found(tmp_path) == ["3"]


def test_a_checkpoint_that_a_training_removes_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3, 5)
    from jaxformer.training import checkpoint

    load, calls = checkpoint.load, []

    def late(folder: Path, like: object) -> object:
        calls.append(folder.name)
        if len(calls) == 1:
            shutil.rmtree(folder)
            save(tmp_path, 7)
        return load(folder, like)

    monkeypatch.setattr(checkpoint, "load", late)
    state, _ = Checkpoints(tmp_path, writable=False, notify=pytest.fail).restore(STATE)
    assert (int(state["step"]), calls) == (7, ["5", "7"])


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
    needed = r"101 kB needed, 100 kB of them missing"
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(OSError, match=rf"no space left.*{needed}.*complete one is 1"),
    ):
        checkpoints.save(2, STATE, {}, 0.0)
    assert found(tmp_path) == ["1"]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for number, loss in enumerate([2.0, 1.0, math.inf, 3.0, math.inf, 5.0], start=1):
            checkpoints.save(number, STATE, {}, loss)
    assert found(tmp_path) == ["2", "5", "6"]


def test_a_save_that_fails_is_told_once_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(_: Writer) -> None:
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir(exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "begin", lambda *_: None)
            patch.setattr(Writer, "wait", full)
            checkpoints.save(2, STATE, {}, 0.0)
            with pytest.raises(OSError, match=r"checkpoint 2 cannot be written: no space left.*last complete one is 1"):
                checkpoints.wait()
            assert found(tmp_path) == ["1"]
        checkpoints.save(2, STATE, {}, 0.0)
    assert found(tmp_path) == ["1", "2"]


def leave_with_an_error(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, STATE, {}, 0.0)
        raise KeyError


def test_the_error_in_a_block_counts_more_than_that_of_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "begin", lambda *_: None)
    monkeypatch.setattr(Writer, "wait", lambda _: 1 / 0)
    with pytest.raises(KeyError):
        leave_with_an_error(tmp_path)
