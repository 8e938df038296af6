"""How much arithmetic the devices could do: what the FLOPs of a step are compared with.

Model FLOPs utilization is the FLOPs that a step needs / what the devices could do in its time (Chowdhery et al. 2022,
PaLM, section 4.1): what is computed twice, or for padding of a kernel, does not count.
"""

from functools import cache
from time import perf_counter

import jax
import jax.numpy as jnp

# Dense products of bfloat16, FLOP per second of one device, from the makers' data sheets; the first name that is part
# of the device's counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
}
SIDE, ROUNDS = 1024, 5  # of the matrices that are multiplied on a CPU


def peak_flops(dtype: jnp.dtype) -> float | None:
    """Return what all devices together can do, in FLOP per second; None where it is not known.

    On CPUs it is measured, which takes some tenths of a second; processes may share one.

    Args:
        dtype: The type that products are computed in. Of accelerators the peak is always that of bfloat16.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return measured_flops(jnp.dtype(dtype))
    known = next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)
    return None if known is None else known * jax.device_count()


@cache
def measured_flops(dtype: jnp.dtype) -> float:
    """Return the FLOP per second of the fastest of some products of large matrices."""
    product, x = jax.jit(jnp.matmul), jnp.ones((SIDE, SIDE), dtype)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        product(x, x).block_until_ready()
        seconds.append(perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)
