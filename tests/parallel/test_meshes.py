"""Meshes of eight virtual devices give what one device gives, with the collectives that are expected and no others."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compilation import XLA_FLAGS
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxformer import InputError, Transformer, as_pretrained, decoder_only, parallel, save_pretrained
from jaxformer.parallel import RULES, Rules, partition
from jaxformer.presets import modern_decoder_only

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


@cache
def on_eight(measurement: str, *arguments: str) -> dict[str, Any]:
    """What a measurement of eight.py gives in a process with eight devices."""
    flags = f"--xla_force_host_platform_device_count=8 {XLA_FLAGS}"
    settings = {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(HERE / "eight.py"), measurement, *arguments]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # The compiler warns where it can divide an array in no other way than by making it whole.
    assert "rematerialization" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout)


# Collectives of a loss and its gradient. Those of `gather` are weights that fsdp divides, and logits' labels.
DIVIDED = ("data=8", "fsdp=8", "tensor=4,data=2", "context=4,data=2")
MIXED = ("data=2,fsdp=2,tensor=2", "context=2,tensor=2,fsdp=2", "context=4,fsdp=2")
EXPERTS = ("data=8", "fsdp=8", "expert=4,data=2", "expert=2,tensor=2,fsdp=2")
CASES = dict.fromkeys(("gpt", "modern", "bert", "paper", "t5"), (*DIVIDED, *MIXED)) | {"deepseek": EXPERTS}
FAST = ("gpt",)
# Mixtures add what experts give in another order; their router makes more of a rounding.
BOUNDS = {"deepseek": 2e-6}
EXPECTED = {
    ("gpt", "data=8"): {"all-reduce": 2},
    ("gpt", "fsdp=8"): {"all-gather": 14, "all-reduce": 2},
    ("gpt", "tensor=4,data=2"): {"all-gather": 8, "all-reduce": 14},
    ("gpt", "context=4,data=2"): {"all-gather": 1, "all-reduce": 6, "collective-permute": 16},
    ("deepseek", "data=8"): {"all-gather": 1, "all-reduce": 3},
    ("deepseek", "expert=4,data=2"): {"all-gather": 6, "all-reduce": 4, "reduce-scatter": 3},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_loss_and_gradient_are_those_of_one_device(name: str) -> None:
    found = on_eight("equality", name, *CASES[name])
    for spec, measured in found.items():
        assert measured["loss"] < 1e-6, spec
        assert measured["gradient"] < BOUNDS.get(name, 1e-6), spec
        assert "all-to-all" not in measured["collectives"], spec
        expected = EXPECTED.get((name, spec), {})
        for kind, count in measured["collectives"].items():
            assert not expected or count <= expected.get(kind, 0), (spec, measured["collectives"])
    assert found["fsdp=8"]["whole"] < 1 / 8 + 0.04  # vectors are whole


def test_a_ring_attends_as_one_device_does() -> None:
    found = on_eight("ring", "context=8", "context=2,tensor=2,data=2")
    assert len(found) == 6
    assert max(found.values()) < 1e-5


def test_memory_of_a_long_sequence_falls_with_the_devices() -> None:
    found = on_eight("long_sequence", str(2**17))
    assert found["2"] < 0.6 * found["1"]
    assert found["8"] < 0.15 * found["1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "paper"])
def test_a_divided_model_generates_the_tokens_of_one_device(name: str) -> None:
    for spec, same in on_eight("generation", name, "tensor=4,data=2", "fsdp=8").items():
        assert all(same), spec


def test_each_device_reads_its_part_of_a_checkpoint(tmp_path: Path) -> None:
    model = Transformer(modern_decoder_only(48, dim=32, layers=1, heads=4, kv_heads=2), rngs=nnx.Rngs(0))
    save_pretrained(as_pretrained(model, family="llama"), tmp_path)
    found = on_eight("opening", str(tmp_path), "fsdp=4,tensor=2")
    assert found["whole"] < 1 / 8 + 0.05
    assert found["logits"] < 1e-5
    assert found["generated"] == found["expected"]


@pytest.mark.parametrize(
    "kind", ["lora", pytest.param("all", marks=pytest.mark.slow), pytest.param("frozen", marks=pytest.mark.slow)]
)
def test_four_steps_have_the_losses_of_one_device(kind: str) -> None:
    found = on_eight("training", "gpt", "data=2,fsdp=2,tensor=2", kind)
    np.testing.assert_allclose(found["divided"], found["one"], rtol=1e-6)
    assert found["one"][3] < found["one"][0] - 0.2


def test_letters_lie_along_the_axes_that_divide_them() -> None:
    sizes = {"data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    assert partition("DNH", (8, 4, 3), sizes, RULES) == P("fsdp", "tensor", None)
    assert partition("DNH", (8, 3, 4), sizes, RULES) == P("fsdp", None, None)  # three heads stay together
    assert partition("BTD", (8, 5, 8), sizes, RULES) == P(("data", "fsdp"), None, None)  # fsdp is taken
    assert partition("BTD", (2, 5, 8), sizes, RULES) == P("data", None, "fsdp")
    assert partition("VD", (7, 8), sizes, Rules(D=("tensor",))) == P(None, "tensor")


def test_a_model_and_its_optimizer_are_divided_alike() -> None:
    model = Transformer(decoder_only(31, length=24, dim=24, layers=1, heads=3), rngs=nnx.Rngs(0))
    letters = parallel.letters_of(model)
    assert letters["decoder", "blocks", "0", "attention", "query", "weight"] == "DNH"
    mesh = parallel.make_mesh("fsdp=1")
    params = nnx.to_pure_dict(nnx.state(model))
    state = {"mu": params, "count": np.zeros(())}
    where = parallel.shardings(state, mesh, letters=letters)
    assert len(jax.tree.leaves(where)) == len(jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fsdp=3", "mesh 'fsdp=3' is for 3 devices, and there are 1"),
        ("fsdp", "'fsdp' must be AXIS=SIZE, AXIS one of data, fsdp, expert, context, tensor"),
        ("pipeline=2", "'pipeline=2' must be AXIS=SIZE"),
        ("fsdp=0", "'fsdp=0' must be AXIS=SIZE"),
        ("fsdp=-1,data=-1", "only one axis may be -1, not data and fsdp"),
        ("fsdp=1,fsdp=1", "names fsdp twice"),
        ("data=2,fsdp=-1", "2 does not divide the 1 devices"),
    ],
)
def test_bad_meshes_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parallel.make_mesh(spec)
    assert message in str(refused.value)
