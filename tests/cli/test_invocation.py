"""The programs by all their names: what they list, their versions, and hints that name what the user typed."""

import shlex
import subprocess
import sys
from pathlib import Path

import flax
import jax
import pytest
from commands import REPOSITORY, call, command, environment, message, typed
from workplace import REPOSITORY_ON_PATH, module

from jaxformer import InputError, __version__
from jaxformer.__main__ import COMMANDS, main
from jaxformer.cli.invocation import command_line

# The script that pip writes for an entry of [project.scripts]; test_packaging checks the entry.
INSTALLED = """
import sys
from jaxformer.__main__ import run
if __name__ == "__main__":
    sys.exit(run())
"""


def called(monkeypatch: pytest.MonkeyPatch, *line: str) -> str:
    """What hints say to type to train, in a process that was started with a command line."""
    monkeypatch.setattr(sys, "orig_argv", list(line))
    arguments = list(line[1:]) if line[1] != "-m" else [str(REPOSITORY / "jaxformer/__main__.py"), *line[3:]]
    monkeypatch.setattr(sys, "argv", arguments)
    return command_line("train")


@pytest.mark.smoke
def test_hints_name_what_the_user_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert called(monkeypatch, "python", "generate.py", "--beam", "4") == "python train.py"
    assert command_line("inspect") == "python -m jaxformer inspect"
    assert called(monkeypatch, ".venv/bin/python", "train.py") == ".venv/bin/python train.py"
    assert called(monkeypatch, "python3", "-m", "jaxformer", "generate") == "python3 -m jaxformer train"
    assert called(monkeypatch, "python", "jaxformer.py") == "jaxformer train"


@pytest.mark.smoke
def test_hints_of_the_installed_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "jaxformer"
    installed.touch(mode=0o755)
    assert called(monkeypatch, "/usr/bin/python3", str(installed), "generate") == f"{installed} train"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert called(monkeypatch, "/usr/bin/python3", str(installed), "generate") == "jaxformer train"


@pytest.mark.smoke
def test_scripts_of_others_are_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, "python", "train.py") == "jaxformer train"
    assert called(monkeypatch, "python", str(REPOSITORY / "tests/train.py")) == "jaxformer train"


@pytest.mark.smoke
@pytest.mark.parametrize("flags", [[], ["--help"], ["-h"]])
def test_every_command_is_listed_with_an_example(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: jaxformer COMMAND [flags]"
    for name, (_, about, example) in COMMANDS.items():
        place = next(index for index, line in enumerate(lines) if line.split()[:1] == [name])
        assert lines[place].endswith(f" {about}")
        assert lines[place + 1].strip() == f"jaxformer {name} {example}"


@pytest.mark.smoke
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: jaxformer {name} " in capsys.readouterr().out


@pytest.mark.smoke
def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(InputError, match="'trian': choose one of train, generate,"):
        main(["trian"])


@pytest.mark.smoke
@pytest.mark.parametrize("flags", [["--version"], ["train", "--version"], ["inspect", "--version"]])
def test_the_version_names_what_it_runs_on(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(flags)
    said = capsys.readouterr().out
    assert said.startswith(f"jaxformer {__version__} (jax {jax.__version__}, flax {flax.__version__}, ")


@pytest.mark.parametrize("line", [command("train.py"), command("generate.py"), module(), ["INSTALLED"]], ids=str)
def test_every_way_to_start(line: list[str], tmp_path: Path) -> None:
    script = tmp_path / "jaxformer"
    script.write_text(INSTALLED)
    line = [sys.executable, str(script)] if line == ["INSTALLED"] else line
    process = subprocess.run([*line, "--version"], env=environment() | REPOSITORY_ON_PATH, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout.startswith(f"jaxformer {__version__} (".encode())


@pytest.mark.slow
def test_train_py_without_a_run_names_itself(tmp_path: Path) -> None:
    said = message(call(tmp_path, "generate.py", "--beam", "4"))
    assert said.endswith(f"train one first with {typed('train.py')} --task copy")
    installed = tmp_path / "jaxformer"
    installed.write_text(INSTALLED)
    line = [sys.executable, str(installed), "generate", "--beam", "4"]
    environ = environment() | REPOSITORY_ON_PATH
    process = subprocess.run(line, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert message(process).endswith(f"train one first with {shlex.quote(str(installed))} train --task copy")
