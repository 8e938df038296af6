"""How programs are compiled, and that a process keeps no more of them than it has room for."""

import importlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.backends import cpu

compiling = importlib.import_module("jaxformer.generation.compiling")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What the compiler said before, and will say later, is forgotten."""
    cpu.few_rows_options.cache_clear()
    yield
    cpu.few_rows_options.cache_clear()


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x @ weight


def text_of(call: compiling.Compiled, *arguments: np.ndarray) -> str:
    """The one program of a call, as text."""
    [program] = [program for key, program in compiling.PROGRAMS.kept.items() if key[0] is call]
    return program.run.lower(*[[each] for each in arguments]).compile().as_text()


def test_products_of_a_few_rows_are_not_given_to_ynnpack() -> None:
    rows, weight = np.ones((4, 512), np.float32), np.ones((512, 2048), np.float32)
    call = compiling.Compiled(product)
    np.testing.assert_array_equal(call(rows, weight), rows @ weight)
    assert "__ynn_fusion" not in text_of(call, rows, weight)


def test_products_of_integers_are_given_to_ynnpack() -> None:
    """Without it, a model of 8 bits would be four times slower than one of 32."""

    def integers(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    rows, weight = np.ones((4, 512), np.int8), np.ones((2048, 512), np.int8)
    call = compiling.Compiled(integers)
    np.testing.assert_array_equal(call(rows, weight), rows.astype(np.int32) @ weight.T)
    assert "__ynn_fusion" in text_of(call, rows, weight)


def test_a_compiler_that_does_not_know_the_options_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "FEW_ROWS_OPTIONS", {"xla_cpu_unheard_of": ""})
    assert cpu.few_rows_options() is None
    np.testing.assert_array_equal(compiling.Compiled(product)(jnp.eye(3), 2 * jnp.eye(3)), 2 * np.eye(3))


class Counted:
    """A function of one array that notes the shapes that it is traced for."""

    def __init__(self) -> None:
        self.traces: list[int] = []
        self.call = compiling.Compiled(self.double)

    def double(self, x: jax.Array) -> jax.Array:
        """Twice the array."""
        self.traces.append(len(x))
        return 2 * x

    def __call__(self, length: int) -> None:
        """Call the program for that length."""
        np.testing.assert_array_equal(self.call(np.arange(length)), 2 * np.arange(length))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> "compiling.Programs":
    """Room for three programs."""
    own = compiling.Programs(3)
    monkeypatch.setattr(compiling, "PROGRAMS", own)
    return own


def test_the_most_recent_programs_are_kept(programs: "compiling.Programs") -> None:
    counted = Counted()
    for length in (1, 2, 3, 1, 4, 1, 5, 2):  # whenever another one comes, the one not used for longest goes
        counted(length)
        assert len(programs.kept) <= 3
    assert counted.traces == [1, 2, 3, 4, 5, 2]
    assert counted.call.kept == 3
    for length in (5, 1, 2, 1, 5):
        counted(length)
    assert len(counted.traces) == 6
    counted.call.clear()
    assert counted.call.kept == len(programs.kept) == 0
    counted(1)
    assert counted.traces[6:] == [1]


def test_functions_share_the_room(programs: "compiling.Programs") -> None:
    one, other = Counted(), Counted()
    for length in (1, 2):
        one(length), other(length)
    assert len(programs.kept) == 3
    assert (one.call.kept, other.call.kept) == (1, 2)


def test_a_program_is_selected_by_what_it_was_compiled_for(programs: "compiling.Programs") -> None:
    """By structure, shape and type of its arguments and by static ones; not by the numbers."""
    traces = []

    @compiling.compiled()
    def total(tree: dict, *, power: int) -> jax.Array:
        traces.append(power)
        return sum(jnp.sum(jnp.asarray(leaf) ** power) for leaf in jax.tree.leaves(tree))

    x = np.ones(3, np.float32)
    for tree, power in (
        ({"a": x}, 2),
        ({"b": x}, 2),
        ({"a": x.astype(np.int32)}, 2),
        ({"a": jnp.ones(4)}, 2),
        ({"a": 3}, 2),
        ({"a": 3.0}, 2),
        ({"a": x}, 3),
    ):
        traces.clear()
        total(tree, power=power)
        assert traces == [power]
        assert total(jax.tree.map(lambda leaf: leaf + 1, tree), power=power) > 0
        flat = compiling.Flat(tree)
        assert total(flat, power=power) == sum(np.sum(np.asarray(leaf) ** power) for leaf in flat.leaves)
        assert len(traces) == 1


def test_programs_that_run_are_not_dropped(programs: "compiling.Programs") -> None:
    counted, begun, go_on = Counted(), threading.Event(), threading.Event()

    @compiling.compiled()
    def waits(x: jax.Array) -> jax.Array:
        begun.set()
        assert go_on.wait(60)
        return x + 1

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waits, np.arange(3))
        assert begun.wait(60)
        for length in range(1, 6):
            counted(length)
        assert waits.kept == 1
        go_on.set()
        np.testing.assert_array_equal(waiting.result(), np.arange(3) + 1)
    assert len(programs.kept) == 3
    counted(7), counted(8), counted(9)
    assert waits.kept == 0


def test_threads_share_the_programs(programs: "compiling.Programs") -> None:
    """Three threads, a hundred calls each, over more programs than are kept."""
    counted = Counted()

    def many(seed: int) -> None:
        for length in np.random.default_rng(seed).integers(1, 8, 100):
            counted(int(length))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(many, range(3)))
    assert len(programs.kept) <= 3
    assert not any(program.running for program in programs.kept.values())
    assert len(counted.traces) > 7  # some were compiled again


def test_what_could_not_be_compiled_is_not_kept(programs: "compiling.Programs") -> None:
    @compiling.compiled()
    def fails(x: jax.Array) -> jax.Array:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            fails(np.ones(3))
    assert not programs.kept


@pytest.mark.parametrize(
    ("most_maps", "others", "left"), [(30, 0, 1), (80, 0, 3), (400, 390, 1), (400, 50, 3), (np.inf, 0, 3)]
)
def test_programs_fit_the_memory_maps(
    programs: "compiling.Programs", monkeypatch: pytest.MonkeyPatch, most_maps: float, others: int, left: int
) -> None:
    """A program takes twenty maps here: too many of them, or too many of others, and only the last one is kept."""
    monkeypatch.setattr(compiling, "most_maps", lambda: most_maps)
    counted = Counted()
    monkeypatch.setattr(compiling, "maps_in_use", lambda: others + 20 * len(counted.traces))
    for length in (1, 2, 3, 4):
        counted(length)
    assert counted.call.kept == left
