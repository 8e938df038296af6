"""What the weights of a checkpoint say of the model, where they say more than its config.json."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxformer.config import HeadConfig, LearnedPositions, SinusoidalPositions, StackConfig, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.ops import sinusoidal_positions
from jaxformer.pretrained.files import Arrays
from jaxformer.pretrained.weights import WeightTable

Table = Callable[[TransformerConfig], WeightTable]


def as_stored(config: TransformerConfig, tensors: Arrays, table: Table) -> TransformerConfig:
    """Return the configuration that the tensors have: what the file holds is right, as for transformers.

    The settings say only what a file without a head, without an embedding for each stack and without positions means.

    Args:
        config: What the settings say.
        tensors: What the file holds, under the names of a whole model.
        table: Where a model of some configuration has its weights.
    """
    check_size(config, tensors)
    config = with_own_embeddings(config, tensors, table)
    config = with_own_head(config, tensors, table(config))
    return with_stored_positions(config, tensors, table(config))


def check_size(config: TransformerConfig, tensors: Arrays) -> None:
    """Raise InputError where the settings describe more layers than there are tensors, before anything is built."""
    layers = sum(len(stack.blocks) for stack in (config.encoder, config.decoder) if stack)
    if layers > len(tensors):
        raise InputError(f"config.json describes {layers} layers, but the weights have only {len(tensors)} tensors")


def with_own_embeddings(config: TransformerConfig, tensors: Arrays, table: Table) -> TransformerConfig:
    """Return the configuration with an embedding for each stack, where the file has two or one unlike the shared."""
    if not config.share_embeddings:
        return config
    apart = replace(config, share_embeddings=False)
    shared, *own = (
        table(one).name(path)
        for one, path in (
            (config, ("embedding", "embedding")),
            (apart, ("embedding", "embedding")),
            (apart, ("source_embedding", "embedding")),
        )
    )
    found = [tensors[name] for name in own if name in tensors]
    if len({shared, *own}) < 3 or len(found) < 2:
        return config
    first, second = found
    if np.array_equal(first, second) and np.array_equal(first, tensors.get(shared or "", first)):
        return config
    return apart


def with_own_head(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> TransformerConfig:
    """Return the configuration with a head of its own, where the file has one that is not the embedding again."""
    if not isinstance(config.head, HeadConfig) or not config.head.tied:
        return config
    head, embedding = (
        tensors.get(table.name(path) or "") for path in (("head", "output", "weight"), ("embedding", "embedding"))
    )
    if head is None or embedding is None or np.array_equal(head, embedding):
        return config
    return replace(config, head=replace(config.head, tied=False))


def with_stored_positions(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> TransformerConfig:
    """Return the configuration with a table of positions, where the file has one that is not the sinusoids."""

    def as_in_file(name: str, stack: StackConfig | None) -> StackConfig | None:
        tensor = tensors.get(table.name((name, "positions", "embedding")) or "")
        if stack is None or tensor is None or not isinstance(stack.positions, SinusoidalPositions):
            return stack
        if tensor.ndim == 2 and tensor.shape[1] == config.dim:
            positions = stack.positions
            computed = sinusoidal_positions(len(tensor), config.dim, positions.layout, positions.base)
            if np.array_equal(tensor, computed):
                return stack
        return replace(stack, positions=LearnedPositions(len(tensor)))

    encoder, decoder = as_in_file("encoder", config.encoder), as_in_file("decoder", config.decoder)
    return replace(config, encoder=encoder, decoder=decoder)
