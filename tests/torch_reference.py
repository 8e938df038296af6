"""The same model in PyTorch, built from torch's own modules, and its tensors under our names."""

import math

import jax
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn

from jaxformer import Transformer, TransformerConfig
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    SinusoidalPositions,
    StackConfig,
)

# Primes wherever the sizes allow it, so that no two axes can be confused.
SOURCE_VOCAB, VOCAB, HEADS, WIDTH, HIDDEN, LAYERS = 31, 29, 2, 11, 13, 2
DIM = HEADS * WIDTH


def our_config(norm_order: str, activation: str, layers: int = LAYERS) -> TransformerConfig:
    """An encoder-decoder with two vocabularies, an output matrix of its own and final norms, as nn.Transformer has."""
    attention = AttentionConfig(HEADS)

    def stack(vocab: int, cross: AttentionConfig | None) -> StackConfig:
        block = BlockConfig(attention, FeedForwardConfig(HIDDEN, activation), cross, norm_order=norm_order)
        return StackConfig(
            EmbeddingConfig(vocab), (block,) * layers, SinusoidalPositions(), final_norm=LayerNormConfig()
        )

    head = HeadConfig(tied=False, bias=True)
    return TransformerConfig(DIM, stack(SOURCE_VOCAB, None), stack(VOCAB, attention), head)


def sinusoids(length: int, dim: int) -> Tensor:
    """Section 3.5 in plain Python, as a reference."""
    rows = [
        [(math.sin, math.cos)[i % 2](position / 10000 ** ((i - i % 2) / dim)) for i in range(dim)]
        for position in range(length)
    ]
    return torch.tensor(rows)


class TorchTransformer(nn.Module):
    """nn.Transformer between embeddings with sinusoids and an output layer."""

    def __init__(self, norm_order: str, activation: str, layers: int = LAYERS):
        super().__init__()
        self.source = nn.Embedding(SOURCE_VOCAB, DIM)
        self.target = nn.Embedding(VOCAB, DIM)
        self.transformer = nn.Transformer(
            DIM,
            HEADS,
            layers,
            layers,
            HIDDEN,
            dropout=0.0,
            activation=activation,
            batch_first=True,
            norm_first=norm_order == "pre",
        )
        self.output = nn.Linear(DIM, VOCAB)
        for name, parameter in self.named_parameters():  # no bias or norm may keep a value that hides a mistake
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)

    def forward(self, source: Tensor, target: Tensor, source_pad: Tensor, target_pad: Tensor) -> Tensor:
        """Token ids [B, S] and [B, T], True at padding -> logits [B, T, V]."""

        def embed(table: nn.Embedding, tokens: Tensor) -> Tensor:
            return table(tokens) * math.sqrt(DIM) + sinusoids(tokens.shape[1], DIM)

        hidden = self.transformer(
            embed(self.source, source),
            embed(self.target, target),
            tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=source_pad,
            tgt_key_padding_mask=target_pad,
            memory_key_padding_mask=source_pad,
        )
        return self.output(hidden)


def our_names(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Parameters or gradients of TorchTransformer by our names, in our shapes."""
    ours = {
        "source_embedding.embedding": tensors["source.weight"],
        "embedding.embedding": tensors["target.weight"],
        "head.output.weight": tensors["output.weight"].T,
        "head.bias": tensors["output.bias"],
    }
    norms = {"encoder": ("attention", "feed_forward"), "decoder": ("attention", "cross", "feed_forward")}
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if ".layers." in name)
    for side, order in norms.items():
        add_norm(ours, tensors, f"{side}.final_norm", f"transformer.{side}.norm")
        for layer in range(layers):
            our, their = f"{side}.blocks.{layer}.", f"transformer.{side}.layers.{layer}."
            add_attention(ours, tensors, our + "attention.", their + "self_attn.")
            if "cross" in order:
                add_attention(ours, tensors, our + "cross.", their + "multihead_attn.")
            for ours_called, theirs_called in (("up", "linear1"), ("down", "linear2")):
                ours[f"{our}feed_forward.{ours_called}.weight"] = tensors[f"{their}{theirs_called}.weight"].T
                ours[f"{our}feed_forward.{ours_called}.bias"] = tensors[f"{their}{theirs_called}.bias"]
            for number, name in enumerate(order, start=1):
                add_norm(ours, tensors, f"{our}{name}_norm", f"{their}norm{number}")
    return {name: tensor.detach().numpy() for name, tensor in ours.items()}


def add_attention(ours: dict[str, Tensor], tensors: dict[str, Tensor], our: str, their: str) -> None:
    """The four projections of an nn.MultiheadAttention, heads apart."""
    weights = tensors[their + "in_proj_weight"].T.reshape(DIM, 3, HEADS, WIDTH).unbind(1)
    biases = tensors[their + "in_proj_bias"].reshape(3, HEADS, WIDTH)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        ours[f"{our}{name}.weight"], ours[f"{our}{name}.bias"] = weight, bias
    ours[our + "output.weight"] = tensors[their + "out_proj.weight"].T.reshape(HEADS, WIDTH, DIM)
    ours[our + "output.bias"] = tensors[their + "out_proj.bias"]


def add_norm(ours: dict[str, Tensor], tensors: dict[str, Tensor], our: str, their: str) -> None:
    """The two vectors of a LayerNorm."""
    ours[our + ".scale"], ours[our + ".bias"] = tensors[their + ".weight"], tensors[their + ".bias"]


def parameters_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The parameters of a TorchTransformer by our names."""
    return our_names(dict(module.named_parameters()))


def gradients_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The gradients of a TorchTransformer by our names."""
    return our_names({name: parameter.grad for name, parameter in module.named_parameters()})


def flat(tree: object) -> dict[str, np.ndarray]:
    """The leaves of one of our models (or of its gradient) by name."""
    pure = nnx.to_pure_dict(nnx.state(tree))
    leaves = jax.tree_util.tree_leaves_with_path(pure)
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


def with_parameters(config: TransformerConfig, arrays: dict[str, np.ndarray]) -> Transformer:
    """A model of ours that holds exactly these arrays."""
    model = Transformer(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    pure = nnx.to_pure_dict(state)
    assert set(flat(model)) == set(arrays)

    def replaced(path: tuple, leaf: jax.Array) -> jax.Array:
        array = arrays[".".join(str(key.key) for key in path)]
        assert array.shape == leaf.shape
        return jax.numpy.array(array)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(replaced, pure))
