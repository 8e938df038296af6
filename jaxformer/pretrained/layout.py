"""Layouts of tensors in checkpoints: which axes of our parameters lie where, for reading and for writing.

A layout is written with the letters of a parameter's axes (`jaxformer.layers.variables`), a group for each axis of the
tensor: a query weight "DNH" is "(N H) D" in a `torch.nn.Linear`. Where parameters share a tensor, "+" stands before the
axes along which they lie side by side:

| layout | meaning | example |
|---|---|---|
| `(+ N H) D` | one parameter after the other | `qkv_proj` of Phi-3 |
| `(N + H) D` | side by side within each head | `query_key_value` of GPT-NeoX |
| `E D (F +)` | in turns, number by number | `gate_up_proj` of gpt-oss |
| `D (+ N H)` | inputs first | `c_attn` of GPT-2 |
| `(4N + N H) D` | side by side within each of four groups of heads | `qkv_proj` of CodeGen |
| `1 V` | a row | `final_logits_bias` of BART |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TypeVar

import jax
import numpy as np

from jaxformer.pretrained.files import Arrays

Shape = tuple[int, ...]
Array = TypeVar("Array", np.ndarray, jax.Array)
GROUP = re.compile(r"\(([^)]*)\)|(\S)")
CUT = re.compile(r"(\d+)([A-Z])")


@dataclass(frozen=True)
class Layout:
    """An arrangement of parameters with equally many axes in one tensor.

    Attributes:
        groups: For each axis of the tensor, the axes of a parameter that it is made of, the slowest first.
        seam: The group at which parameters meet, and how many of its axes come before the seam.
        cut: An axis of a parameter that counts as two, and into how many parts it is cut. None: none is.
    """

    groups: tuple[tuple[int, ...], ...]
    seam: tuple[int, int] = (0, 0)
    cut: tuple[int, int] | None = None

    @classmethod
    @cache
    def parse(cls, pattern: str, axes: str) -> "Layout":
        """Return the layout of a pattern for parameters with these axes.

        Letters that the parameters lack are skipped: the pattern of a weight is that of its bias too. A number before a
        letter stands for the parts that the axis is cut into, and the letter alone for what is in a part.
        """
        cut = None
        if (found := CUT.search(pattern)) and found[2] in axes:
            parts, letter = int(found[1]), found[2]
            cut = axes.index(letter), parts
            axes = axes.replace(letter, letter.lower() + letter)
            pattern = pattern.replace(found[0], letter.lower())
        groups: list[tuple[int, ...]] = []
        seam = (0, 0)
        for several, one in GROUP.findall(pattern):
            symbols = [symbol for symbol in (several or one).split() if symbol in f"+1{axes}"]
            if not symbols:
                continue
            if "+" in symbols:
                seam = len(groups), symbols.index("+")
            groups.append(tuple(axes.index(symbol) for symbol in symbols if symbol not in "+1"))
        assert sorted(sum(groups, ())) == list(range(len(axes))), f"{pattern} must have each of {axes} once"
        return cls(tuple(groups), seam, cut)

    @classmethod
    @cache
    def linear(cls, axes: int, inputs: int, outputs: int) -> "Layout":
        """Return the layout of `torch.nn.Linear`, [..., outputs, inputs], in which maps share a tensor by outputs.

        Args:
            axes: How many axes the parameter has: leading ones, inputs, outputs.
            inputs: How many of these are inputs; 0 for a bias.
            outputs: How many are outputs.
        """
        leading = axes - inputs - outputs
        places = tuple(range(axes))
        groups = (*((place,) for place in places[:leading]), places[axes - outputs :], places[leading : axes - outputs])
        return cls(tuple(group for group in groups if group), (leading, 0))

    @classmethod
    @cache
    def plain(cls, axes: int) -> "Layout":
        """Return the layout of a tensor that has the axes of its parameter."""
        return cls(tuple((axis,) for axis in range(axes)))

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of a tensor with parameters of these shapes."""
        return self._merged(self._joined(shapes))

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the tensor that contains these parameters."""
        cut = [part.reshape(self._cut(part.shape)) for part in parts]
        opened = [
            each.transpose(self._order).reshape(self._opened(part.shape)) for each, part in zip(cut, parts, strict=True)
        ]
        tensor = opened[0] if len(opened) == 1 else np.concatenate(opened, self._axis)
        return tensor.reshape(self._merged(tensor.shape))

    def split(self, tensor: Array, shapes: Sequence[Shape]) -> list[Array]:
        """Return the parameters of these shapes in a tensor: the inverse of `join`, as views where NumPy has them."""
        opened = tensor.reshape(self._joined(shapes))
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        parts, start = [], 0
        for shape in shapes:
            end = start + self._opened(shape)[self._axis]
            piece = opened[(slice(None),) * self._axis + (slice(start, end),)]
            cut = self._cut(shape)
            parts.append(piece.reshape([cut[axis] for axis in self._order]).transpose(inverse).reshape(shape))
            start = end
        return parts

    @property
    def _order(self) -> tuple[int, ...]:
        """The axes of a parameter in the order of the tensor."""
        return sum(self.groups, ())

    @property
    def _axis(self) -> int:
        """The axis along which parameters meet in an opened shape."""
        return self.seam[0] + 1

    def _cut(self, shape: Shape) -> Shape:
        """Return the shape of a parameter with two axes in place of the one that is cut."""
        if self.cut is None:
            return shape
        axis, parts = self.cut
        return (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])

    def _opened(self, shape: Shape) -> Shape:
        """Return the shape of a parameter in the tensor, with two axes in place of the seam's."""
        group, place = self.seam
        shape = self._cut(shape)
        sizes = [prod(shape[axis] for axis in axes) for axes in self.groups]
        before, after = self.groups[group][:place], self.groups[group][place:]
        sizes[group : group + 1] = [prod(shape[axis] for axis in part) for part in (before, after)]
        return tuple(sizes)

    def _joined(self, shapes: Sequence[Shape]) -> Shape:
        """Return the opened shape of all parameters together."""
        first, *others = map(self._opened, shapes)
        along = first[self._axis] + sum(other[self._axis] for other in others)
        return (*first[: self._axis], along, *first[self._axis + 1 :])

    def _merged(self, opened: Shape) -> Shape:
        """Return an opened shape with the two axes at the seam merged."""
        return (*opened[: self._axis - 1], opened[self._axis - 1] * opened[self._axis], *opened[self._axis + 1 :])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, or one for each expert, and the parameters in it.

    Attributes:
        name: Its name; with "*" in place of the number of the expert, where each has a tensor.
        experts: The number of experts where each has a tensor, else None.
        paths: Our parameters in it, in their order.
        shapes: Their shapes, without the axis of experts where each expert has a tensor.
        layout: How they lie in it.
    """

    name: str
    experts: int | None
    paths: tuple[tuple[str | int, ...], ...]
    shapes: tuple[Shape, ...]
    layout: Layout

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        if self.experts is None:
            return [self.name]
        return [self.name.replace("*", str(expert)) for expert in range(self.experts)]

    @property
    def shape(self) -> Shape:
        """The shape of each."""
        return self.layout.shape(self.shapes)

    def write(self, parameters: Sequence[np.ndarray]) -> Arrays:
        """Return the tensors with these parameters."""
        if self.experts is None:
            return {self.name: np.ascontiguousarray(self.layout.join(parameters))}
        each = (self.layout.join(parts) for parts in zip(*parameters, strict=True))
        return dict(zip(self.names, map(np.ascontiguousarray, each), strict=True))

    def read(self, tensors: Arrays) -> list[np.ndarray]:
        """Return the parameters in the tensors, as views where NumPy has them."""
        if self.experts is None:
            return self.layout.split(tensors[self.name], self.shapes)
        each = [self.layout.split(tensors[name], self.shapes) for name in self.names]
        return [np.stack(parts) for parts in zip(*each, strict=True)]
