"""The profile of training steps: names of modules, and what a trace says of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jaxformer import Transformer, decoder_only
from jaxformer.tasks import model_loss
from jaxformer.training import StepProfiler, init_state, make_train_step
from jaxformer.training.profile import Operation, operation, operations, table


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(train_step)/jvp(blocks.3)/attention/dot_general", ("blocks.*.attention", "dot_general", False)),
        ("jit(train_step)/transpose(jvp(head))/dot_general", ("head", "dot_general", True)),
        (
            "jit(train_step)/jvp(blocks.0)/attention/XQS,XSH->XQH/dot_general",
            ("blocks.*.attention", "dot_general", False),
        ),
        ("jit(train_step)/optimizer/cond/branch_1_fun/add", ("optimizer", "add", False)),
        ("jit(train_step)/a/mul;jit(train_step)/b/add", ("a", "mul", False)),
        ("", ("(step)", "other", False)),
    ],
)
def test_paths_become_modules(path: str, expected: tuple[str, str, bool]) -> None:
    assert operation(path) == Operation(*expected)


def test_instructions_are_found_in_a_program() -> None:
    metadata = 'metadata={op_name="jit(f)/jvp(head)/dot_general" frame=5}'
    program = f"  ROOT %dot.1 = f32[2]{{0}} dot(%a, %b), {metadata}\n  %x = f32[]"
    assert operations(program) == {"dot.1": Operation("head", "dot_general", backward=False)}


def test_the_table_is_sorted_and_shares_are_of_all() -> None:
    found = {Operation("head", "dot_general", backward=True): 3.0, Operation("optimizer", "add", backward=False): 1.0}
    assert table({}, 2) == ["the trace names no operation of the step"]
    assert table(found, 2)[2:] == [
        "  75.0%    1500.00  head: dot_general, backward",
        "  25.0%     500.00  optimizer: add",
    ]


def test_a_trace_names_the_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps three to five are traced; the profiled step computes what the step computes."""
    graphdef, params = nnx.split(Transformer(decoder_only(50, length=16, dim=32, layers=2, heads=2), rngs=nnx.Rngs(0)))

    def loss(params: object, batch: jax.Array, key: jax.Array) -> object:
        return model_loss(nnx.merge(graphdef, params), batch, labels=batch)

    optimizer = optax.adam(1e-3)
    step = make_train_step(loss, optimizer, optax.constant_schedule(1e-3))
    profiled, tokens = StepProfiler(step, tmp_path), jnp.arange(32).reshape(2, 16)
    states = [init_state(jax.tree.map(jnp.copy, params), optimizer, 0) for _ in range(2)]
    for _ in range(6):
        states[0], expected = step(states[0], tokens)
        states[1], actual = profiled(states[1], tokens)
        assert expected.loss == actual.loss
    said = capsys.readouterr().err
    assert "the most expensive operations of 3 steps" in said
    assert "blocks.*." in said
    assert ", backward" in said
    assert list(tmp_path.rglob("*.xplane.pb"))
