"""A cache that is sharded over rows and heads, on four devices of a process of its own."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxformer
from jaxformer import backends
from jaxformer.presets import modern_decoder_only

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "tensor"))
config = modern_decoder_only(40, dim=32, layers=2, heads=4, kv_heads=2)
model = jaxformer.Transformer(config, rngs=nnx.Rngs(0))
ids = np.random.default_rng(0).integers(3, 40, (4, 5))
prefill = jax.jit(lambda cache: model.prefill(ids, cache, length=5))
step = jax.jit(lambda cache: model.step(jnp.array([[3], [4], [5], [6]]), cache))
reorder = jax.jit(lambda cache: cache.reorder(jnp.array([1, 0, 3, 2])))

def run(cache):
    first, cache = prefill(cache)
    second, cache = step(reorder(cache))
    return first, second, cache

with backends.using("default"):
    alone = model.init_cache(4, 8)
    parts = NamedSharding(mesh, P("data", None, "tensor", None))
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, parts) if np.ndim(leaf) == 4 else leaf, alone)
    assert not prefill(sharded)[1].layers[0].key.is_fully_replicated
    (*expected, _), (*found, cache) = run(alone), run(sharded)
for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
assert "tensor" in str(cache.layers[0].key.sharding.spec)
"""


@pytest.mark.slow
def test_a_cache_is_sharded_over_rows_and_heads() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
