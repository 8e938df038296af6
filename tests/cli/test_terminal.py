"""What programs do at their edges: standard streams that are closed or full, odd files, messages of one line."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import refusal

from jaxformer.cli import inspect, terminal
from jaxformer.cli.streams import is_piped, print_as_it_comes, read_lines, replacing
from jaxformer.errors import InputError
from jaxformer.interrupts import FAREWELL
from jaxformer.machine import cache_folder


def raising(error: Exception) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Put bytes on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("two\nlines"), "error: two lines"),
        (InputError("a \x1b[31mred\x07 \udcff name"), r"error: a \x1b[31mred\x07 \udcff name"),
        (FileNotFoundError(2, "No such file or directory", "a\nb\x1b"), r"error: a\nb\x1b: No such file or directory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (OSError(9, "Bad file descriptor", 99), "error: 99: Bad file descriptor"),
        (OSError("a sentence"), "error: a sentence"),
        (InputError(""), "error: InputError"),
    ],
)
def test_a_message_is_one_line_of_characters_that_can_be_printed(
    error: Exception, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(raising(error), capsys) == expected


@pytest.mark.parametrize(
    "error", [InputError(f"--name {'x' * 200_000}: leave it out"), OSError(36, "too long", "y" * 4000)]
)
def test_a_message_has_an_end(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(raising(error), capsys)
    assert len(said) == 300
    assert said.endswith(("leave it out", "too long"))


def test_bad_flags_of_inspect_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(lambda: inspect.main(["--bach", "2"]), capsys) == (
        "error: Unrecognized options: --bach, 2. Perhaps you meant: --batch (--help shows all flags)"
    )
    assert "'many'" in refusal(lambda: inspect.main(["--batch", "many"]), capsys)
    assert "must be from 1 to 2147483647" in refusal(lambda: inspect.main(["--length", "9" * 400]), capsys)


def test_streams_that_are_closed_are_open_to_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def main() -> None:
        print("nobody reads this")
        assert sys.stdin.read() == ""
        print("nor this", file=sys.stderr)
        raise InputError("and that")

    with pytest.raises(SystemExit) as stop:
        terminal.run(main)
    assert stop.value.code == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_any_character_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    terminal.run(lambda: print("caf\u00e9 \udcff"))
    assert output.buffer.getvalue() == b"caf\\xe9 \\udcff\n"


@pytest.mark.parametrize("stop", [None, SystemExit(0)], ids=["returns", "help"])
def test_a_full_disk_behind_standard_output_is_told_once(stop: SystemExit | None) -> None:
    raises = "" if stop is None else "; raise SystemExit(0)"
    script = f"from jaxformer.cli import terminal\ndef main(): print('x'){raises}\nterminal.run(main)"
    with open("/dev/full", "wb") as full:
        process = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE)
    assert (process.returncode, process.stderr) == (2, b"error: No space left on device\n")


def test_a_program_in_a_thread_leaves_signals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=terminal.run, args=(lambda: print("done"),))
    thread.start()
    thread.join()
    assert capsys.readouterr().out == "done\n"


def test_lines_end_where_lines_end(tmp_path: Path) -> None:
    """And nowhere else; the mark that some editors begin a file with is not a part of the first."""
    (tmp_path / "lines").write_bytes("\ufeffa\fb\r\n \nc\u2028d\re".encode())
    assert read_lines(tmp_path / "lines") == [(1, "a\fb"), (3, "c\u2028d"), (4, "e")]


@pytest.mark.parametrize("data", [b"caf\xe9\n", b"a\n" * 9000 + b"\xff", "abc".encode("utf-16"), b"\xed\xa0\x80\n"])
def test_what_is_not_utf8_is_called_so(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(data)
    given(monkeypatch, data)
    for file, name in ((tmp_path / "file", "file"), (Path("-"), "standard input")):
        with pytest.raises(InputError, match=f"{name} is not text in UTF-8"):
            read_lines(file)


def test_standard_input_is_read_to_its_end_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "\u00e9\n\nb".encode())
    assert read_lines(Path("-")) == [(1, "\u00e9"), (3, "b")]
    assert not sys.stdin.closed
    given(monkeypatch, b"")
    with pytest.raises(InputError, match="standard input holds no input"):
        read_lines(Path("-"))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/null"])
def test_a_device_is_not_read(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"{device} is a device: give a text file or a pipe"):
        read_lines(Path(device))
    with open(device) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert not is_piped()
        with pytest.raises(InputError, match="standard input is a device"):
            read_lines(Path("-"))


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n" * 50_000,))
    writer.start()
    assert len(read_lines(pipe)) == 100_000
    writer.join()


def test_which_standard_input_is_piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    reader, writer = os.pipe()
    with open(reader) as pipe, open(tmp_path / "file") as file, open(os.devnull) as nothing:
        for stream, expected in ((pipe, True), (file, True), (nothing, False), (io.StringIO("x"), False)):
            monkeypatch.setattr("sys.stdin", stream)
            assert is_piped() == expected
    os.close(writer)


def test_a_text_that_breaks_off_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    def parts() -> object:
        yield "It "
        yield ""
        yield "is"
        assert FAREWELL.in_line
        raise InputError("broken")

    with pytest.raises(InputError):
        print_as_it_comes(parts())
    assert capsys.readouterr().out == "It is\n"
    print_as_it_comes(["a\n"])
    assert capsys.readouterr().out == "a\n\n"
    assert not FAREWELL.in_line


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            assert path.read_text() == "old"
            raise InputError("no more")

    with pytest.raises(InputError):
        break_off()
    assert path.read_text() == "old"
    with replacing(link) as file:
        file.write(b"new")
        assert {part.name for part in FAREWELL.unfinished} == {"file.part"}
    assert path.read_text() == "new"
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert not FAREWELL.unfinished


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    with replacing(Path("/dev/null")) as file:
        file.write(b"x")
    with pytest.raises(OSError, match="No space"), replacing(Path("/dev/full")) as file:
        file.write(b"x")
    assert Path("/dev/full").is_char_device()
    with pytest.raises(IsADirectoryError), replacing(tmp_path) as file:
        pass
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), replacing(tmp_path / "loop") as file:
        pass


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user whom the system does not know
    terminal.keep_compiled_programs()
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        cache_folder()


def test_a_command_to_type_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A message has 300 characters, of which the command takes what it needs; a third is left for the reason."""
    for deep, most in ((5, 300), (90, 300 // 3 + len(" go on with: ") + 520)):
        command = f"python train.py --task copy --resume --output /{'deep/' * deep}run"

        def fail(command: str = command) -> None:
            raise InputError(f"the disk is full, {'x' * 400}: go on with: {command}")

        with pytest.raises(SystemExit):
            terminal.run(fail)
        said = capsys.readouterr().err.rstrip()
        assert said.startswith("error: the disk is full, xxx")
        assert said.endswith(f" go on with: {command}")
        assert len(said) <= most
