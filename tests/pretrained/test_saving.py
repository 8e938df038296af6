"""Saving is one step: what is in a folder at every moment, and what of it stays."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxformer.errors import InputError
from jaxformer.pretrained import saving, staging
from jaxformer.pretrained.saving import replacing

OLD = {"config.json": "old config", "model.safetensors": "old weights", "tokenizer.json": "tokens"}
NEW = {"config.json": "new config", "model.safetensors": "new weights", "generation_config.json": "new"}
OTHERS = {"README.md": "read me", ".git/HEAD": "main", ".cache/a/b": "cached", "flax_model.msgpack": "flax"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def save(folder: Path, files: dict[str, str] = NEW, stale: Sequence[str] = ()) -> None:
    with replacing(folder, stale) as new:
        fill(new, files)


def refuse(*_: object) -> None:
    raise OSError(errno.EINVAL, "not here")


@pytest.fixture(params=["exchange", "one by one", "inside"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ways to save: folders can be exchanged, or not, or nothing can be made beside the folder."""
    if request.param != "exchange":
        monkeypatch.setattr(saving, "exchange", refuse)
    if request.param == "inside":
        make = staging.make_place

        def only_inside(parent: Path, target: Path) -> staging.Place:
            if parent != target:
                raise PermissionError(errno.EACCES, "read-only", str(parent))
            return make(parent, target)

        monkeypatch.setattr(staging, "make_place", only_inside)
    return request.param


def test_what_is_written_and_what_stays(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    fill(folder, OLD | OTHERS)
    (folder / "link").symlink_to("README.md")
    (folder / "nowhere").symlink_to("/does/not/exist")
    (folder / "empty").mkdir()
    folder.chmod(0o750)
    save(folder)
    assert contents(folder) == OLD | OTHERS | NEW | {"link": "read me"}
    assert (folder / "link").readlink() == Path("README.md")
    assert (folder / "nowhere").is_symlink()
    assert (folder / "empty").is_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("there", ["missing", "empty", "files", "link", "dangling"])
def test_folders_that_hold_no_model(tmp_path: Path, there: str, how: str) -> None:
    folder, kept = tmp_path / "a" / "model", {}
    if how == "inside" and there in ("missing", "dangling"):
        pytest.skip("a place inside a folder needs the folder, which is missing here")
    if there in ("empty", "files"):
        folder.mkdir(parents=True)
        kept = {"README.md": "read me"} if there == "files" else {}
        fill(folder, kept)
    if there in ("link", "dangling"):
        (tmp_path / "a").mkdir()
        folder.symlink_to(tmp_path / "b" / "real")
        if there == "link":
            fill(tmp_path / "b" / "real", OLD)
            kept = OLD
    save(folder)
    assert contents(folder) == kept | NEW
    assert folder.is_symlink() == (there in ("link", "dangling"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model"}


def test_stale_files_go(tmp_path: Path, how: str) -> None:
    """But never what has just been written, whatever the case of its name."""
    fill(tmp_path, OLD | {"a.safetensors": "", "b.safetensors": "", "c.safetensors": ""})
    save(tmp_path, stale=["a.safetensors", "b.safetensors", "missing", "model.safetensors", "MODEL.safetensors"])
    assert contents(tmp_path) == OLD | NEW | {"c.safetensors": ""}
    save(tmp_path, stale=["c.safetensors", "config.json"])
    assert contents(tmp_path) == OLD | NEW


def test_what_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the old folder, between its copy and the exchange, or behind the exchange through an open folder."""
    folder, real = tmp_path / "model", saving.exchange
    fill(folder, OLD | OTHERS)

    def others_write(new: Path, target: Path) -> None:
        fill(target, {"late": "1", ".git/late": "2", "later/file": "3"})
        (target / "other").write_text("replaced")
        os.replace(target / "other", target / "README.md")
        real(new, target)
        fill(target, {"flax_model.msgpack": "in place"})
        (target / "other").write_text("newer")
        os.replace(target / "other", target / ".cache" / "a" / "b")
        fill(new, {"latest": "4"})

    monkeypatch.setattr(saving, "exchange", others_write)
    save(folder)
    expected = {"late": "1", ".git/late": "2", "later/file": "3", "README.md": "replaced", "latest": "4"}
    expected |= {"flax_model.msgpack": "in place", ".cache/a/b": "newer"}
    assert contents(folder) == OLD | OTHERS | NEW | expected


def test_one_file_that_differs_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who works in the folder, or watches it, keeps it."""
    save(tmp_path / "model")
    inode = (tmp_path / "model").stat().st_ino
    monkeypatch.setattr(saving, "exchange", None)
    save(tmp_path / "model", NEW | {"model.safetensors": "newer"})
    assert contents(tmp_path / "model") == NEW | {"model.safetensors": "newer"}
    assert (tmp_path / "model").stat().st_ino == inode


def test_the_working_folder_can_be_saved_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    fill(tmp_path / "model", OLD)
    monkeypatch.chdir(tmp_path / "model")
    save(Path("."))
    assert contents(Path(".")) == OLD | NEW
    assert Path.cwd() == tmp_path / "model"


def no_sync(_: int) -> None:
    """Save time."""


CALLS = ("rename", "replace", "link", "mkdir", "fsync", "unlink", "chown", "symlink", "open")


def test_a_failure_of_any_call_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Whichever call of the system fails first: the folder is as it was, or holds all that is new."""
    before, after = OLD | OTHERS, {name: text for name, text in (OLD | OTHERS | NEW).items() if name != "stale"}
    for step in range(1000):
        folder, calls, failed = tmp_path / f"{step}" / "model", iter(range(step + 1)), []
        fill(folder, before | {"stale": "x"})

        def failing(function: Callable, calls: Iterator[int], failed: list[str]) -> Callable:
            def call(*arguments: Any, **more: Any) -> Any:
                if not failed and next(calls) == step:  # noqa: B023
                    failed.append(function.__name__)
                    raise OSError(errno.ENOSPC, "full")
                return function(*arguments, **more)

            return call

        raised = False
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_sync)
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name), calls, failed))
            patch.setattr(shutil, "copystat", failing(shutil.copystat, calls, failed))
            try:
                save(folder, stale=["stale"])
            except OSError:
                raised = True
        found = {name: text for name, text in contents(folder).items() if not name.startswith(".unfinished-")}
        assert found.pop("stale", None) or not raised
        assert found == (before if raised else after), (step, failed)
        save(folder, stale=["stale"])
        assert contents(folder) == after
        assert os.listdir(folder.parent) == ["model"]
        if not failed:
            break
    assert 15 < step < 100


def test_a_folder_in_the_way_is_refused(tmp_path: Path, how: str) -> None:
    fill(tmp_path / "model", OLD | {"generation_config.json/precious": "x"})
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"generation_config\.json is a folder"):
        save(tmp_path / "model")
    assert contents(tmp_path) == before


def test_a_file_system_that_only_looks_like_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted from the same device: nothing can be renamed or linked from beside it."""
    folder, rename, replace = tmp_path / "model", os.rename, os.replace
    fill(folder, OLD)

    def within(function: Callable) -> Callable:
        def call(source: Path, goal: Path) -> None:
            if folder in Path(source).parents != folder in Path(goal).parents:
                raise OSError(errno.EXDEV, "another device")
            function(source, goal)

        return call

    monkeypatch.setattr(os, "rename", within(rename))
    monkeypatch.setattr(os, "replace", within(replace))
    monkeypatch.setattr(saving, "exchange", refuse)
    monkeypatch.setattr(os, "link", refuse)
    save(folder)
    assert contents(folder) == OLD | NEW
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".unfinished-*"))


def interrupted(folder: Path) -> Iterator[None]:
    """A save that was never ended, as a killed process leaves it."""
    with replacing(folder) as new:
        fill(new, {"model.safetensors": "half"})
        yield


def test_what_a_kill_leaves_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    fill(tmp_path / "model", OLD)
    running = interrupted(tmp_path / "model")
    next(running)
    (place,) = leftovers(tmp_path)
    killed = tmp_path / ".unfinished-killed"
    shutil.copytree(place, killed)
    foreign, half = tmp_path / ".unfinished-foreign", tmp_path / ".unfinished-half"
    fill(foreign, {"lock": "{}", "new/precious": "x"})
    fill(half, {"lock": "", "new/precious": "x"})
    for folder, text in (("empty", None), ("unnoted", "")):
        (tmp_path / f".unfinished-{folder}" / "new").mkdir(parents=True)
        if text is not None:
            (tmp_path / f".unfinished-{folder}" / "lock").write_text(text)
    shutil.rmtree(tmp_path / ".unfinished-empty" / "new")
    save(tmp_path / "model")
    assert leftovers(tmp_path) == sorted([place, foreign, half])
    assert contents(tmp_path / "model") == OLD | NEW
    with pytest.raises(StopIteration):
        next(running)
    assert leftovers(tmp_path) == sorted([foreign, half])
    assert contents(tmp_path / "model")["model.safetensors"] == "half"


def test_files_of_others_in_a_place_that_was_exchanged_come_back(tmp_path: Path) -> None:
    """Killed behind the exchange: the place holds the old folder."""
    fill(tmp_path / "model", NEW)
    running = interrupted(tmp_path / "model")
    next(running)
    (place,) = leftovers(tmp_path)
    killed = tmp_path / ".unfinished-killed"
    shutil.copytree(place, killed)  # its folder has another inode than the record says
    fill(killed / "new", {"late": "1", "config.json": "old"})
    save(tmp_path / "model")
    assert not killed.exists()
    assert contents(tmp_path / "model") == NEW | {"late": "1", "model.safetensors": "new weights"}
    running.close()


def test_places_are_private_and_weights_are_not(tmp_path: Path) -> None:
    running = interrupted(tmp_path / "model")
    next(running)
    (place,) = leftovers(tmp_path)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    running.close()
    assert not leftovers(tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    save(tmp_path / "model")
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount")
def test_a_mounted_folder_is_saved_to(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    if os.system(f"mount -t tmpfs -o size=1m none {tmp_path / 'model'}"):
        pytest.skip("root may not mount in this container")
    try:
        fill(tmp_path / "model", OLD | OTHERS)
        save(tmp_path / "model")
        assert contents(tmp_path / "model") == OLD | OTHERS | NEW
        fill(tmp_path / "outer", OLD)
        (tmp_path / "outer" / "inner").mkdir()
        assert not os.system(f"mount --bind {tmp_path / 'model'} {tmp_path / 'outer' / 'inner'}")
        save(tmp_path / "outer")
        assert contents(tmp_path / "outer" / "inner") == contents(tmp_path / "model")
        assert not os.system(f"umount {tmp_path / 'outer' / 'inner'}")
        assert contents(tmp_path / "outer") == OLD | NEW
    finally:
        os.system(f"umount {tmp_path / 'outer' / 'inner'} 2>/dev/null")
        os.system(f"umount {tmp_path / 'model'}")
