"""Which kernel serves few rows: measured once, remembered for the processor, fixed by the environment."""

import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxformer import InputError
from jaxformer.backends import cpu, measured

F32 = jnp.dtype(jnp.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of a process that has measured nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(measured.VARIABLE)
    monkeypatch.setattr(measured, "READ", {})
    return tmp_path / "jaxformer"


def test_the_environment_fixes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (0, 2):
        monkeypatch.setenv(measured.VARIABLE, str(most))
        found = [cpu.prefers_transposed(rows, (4096, 512), F32) for rows in range(6)]
        assert found == [0 < rows <= most for rows in range(6)]
    monkeypatch.setenv(measured.VARIABLE, "many")
    with pytest.raises(InputError, match="JAXFORMER_FEW_ROWS='many' must be a number from 0 to 4: leave it out"):
        cpu.prefers_transposed(1, (4096, 512), F32)


def test_a_machine_measures_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([3, 1])
    assert measured.remembered("float32", lambda: next(answers)) == 3
    assert measured.remembered("bfloat16", lambda: next(answers)) == 1
    (path,) = cache.iterdir()
    assert json.loads(path.read_text()) == {measured.processor_name(): {"float32": 3, "bfloat16": 1}}
    monkeypatch.setattr(measured, "READ", {})  # another process
    assert measured.remembered("float32", lambda: next(answers)) == 3
    monkeypatch.setattr(measured, "processor_name", lambda: "another processor")
    assert measured.remembered("float32", lambda: 2) == 2
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\nstepping\t: 1\n\nmodel name\t: other",
            "AMD EPYC 26 2 1",
        ),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n\nCPU part\t: 0xd03",
            "0x41 0x1 0xd40",  # ARM processors have numbers in place of a name
        ),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_processors_are_told_apart_by_what_the_system_says(
    cpuinfo: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    assert measured.processor_name.__wrapped__().startswith(f"{name}, ")


def test_what_another_process_measured_meanwhile_is_right(cache: Path) -> None:
    def measured_by_both() -> int:
        cache.mkdir(exist_ok=True)
        (cache / "few_rows.json").write_text(json.dumps({measured.processor_name(): {"float32": 1}}))
        return 4

    assert measured.remembered("float32", measured_by_both) == 1
    assert measured.remembered("float32", lambda: 2) == 1
    assert [path.name for path in cache.iterdir()] == ["few_rows.json"]


def test_a_folder_in_the_place_of_the_file_leaves_nothing_behind(cache: Path) -> None:
    (cache / "few_rows.json").mkdir(parents=True)
    assert measured.remembered("float32", lambda: 3) == 3
    assert [path.name for path in cache.iterdir()] == ["few_rows.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"PROCESSOR": 4}', '{"PROCESSOR": {"float32": 9}}'])
def test_a_damaged_file_is_measured_again(cache: Path, text: str) -> None:
    cache.mkdir()
    (cache / "few_rows.json").write_text(text.replace("PROCESSOR", measured.processor_name()))
    assert measured.remembered("float32", lambda: 2) == 2
    assert json.loads((cache / "few_rows.json").read_text())[measured.processor_name()] == {"float32": 2}


def test_where_no_file_can_be_written_a_process_measures_for_itself(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert measured.remembered("float32", lambda: 1) == 1
    assert measured.remembered("float32", lambda: 2) == 1


def test_the_faster_kernel_is_found_also_while_something_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of both is turned round where the other one is made slow."""
    monkeypatch.setattr(measured, "WIDTH", 8)
    monkeypatch.setattr(measured, "LAYERS", 1)

    def quick(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.zeros((x.shape[0], 32 if x.shape[1] == 8 else 8))

    def slow(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 50_000, lambda _, y: y + jnp.sin(y + x.sum()), quick(x, weight))

    found = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        found.append(measured.measure(F32, lambda x, w: quick(x[0], w)[None], slow, None))
        found.append(measured.measure(F32, lambda x, w: slow(x[0], w)[None], quick, None))
        return x

    with jax.debug_nans(True):
        traced(jnp.ones(3))
    assert found == [measured.MOST, 0]


def test_the_kernels_themselves_are_measured_where_nans_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LAYERS", 1)
    with jax.debug_nans(True):
        assert 0 <= measured.measure(F32, cpu.few_rows_matmul, cpu._times, None) <= measured.MOST


def test_types_without_a_kernel_are_not_measured(cache: Path) -> None:
    for dtype in (jnp.float8_e5m2, jnp.int8, jnp.float64, bool):
        assert cpu.few_rows(jnp.dtype(dtype)) == 0
    assert not cache.exists()
