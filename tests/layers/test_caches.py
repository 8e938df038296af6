"""What layers remember is written in its place: no step of a loop copies a whole cache."""

import re

import jax
import jax.numpy as jnp
import pytest
from compilation import FUSED
from flax import nnx

from jaxformer.backends.cpu import few_rows_options
from jaxformer.config import AnyAttentionConfig, AttentionConfig, LatentAttentionConfig
from jaxformer.layers import LayerCache
from jaxformer.layers.any_attention import AnyAttention, make_attention
from jaxformer.ops import AttentionMask

D, SLOTS, BEGIN, END = 48, 1031, 7, 29
KINDS = {
    "as many keys as queries": AttentionConfig(heads=3, head_dim=16),
    "a key for two queries": AttentionConfig(heads=4, kv_heads=2, head_dim=16),
    "a key for all": AttentionConfig(heads=3, kv_heads=1, head_dim=16),
    "latents": LatentAttentionConfig(heads=3, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8),
}


def steps(attention: AnyAttention, x: jax.Array, cache: LayerCache) -> tuple[jax.Array, LayerCache]:
    """Tokens one after the other, each written and then attended from, as a decoder does."""

    def step(slot: jax.Array, carried: tuple[jax.Array, LayerCache]) -> tuple[jax.Array, LayerCache]:
        x, cache = carried
        output = attention(x, mask=AttentionMask(causal=True, offset=slot), cache=cache)
        return x + output.states, output.cache

    return jax.lax.fori_loop(BEGIN, END, step, (x, cache))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_step_copies_no_cache(config: AnyAttentionConfig, rows: int) -> None:
    attention = make_attention(config, D, rngs=nnx.Rngs(0))
    x, cache = jnp.ones((rows, 1, D)), attention.init_cache(rows, SLOTS)
    options = (few_rows_options() or {}) | FUSED  # loops are fused as users have them
    program = jax.jit(steps, compiler_options=options).lower(attention, x, cache).compile().as_text()
    copies = re.findall(rf" = f32\[(?:\d+,)?{SLOTS},\d+\]\S* copy\(", program)
    # The arguments are copied once, in front of the loop, as they are not given away.
    assert len(copies) == len(jax.tree.leaves(cache)), copies
