"""Settings of low-rank adapters."""

import math
import re
from dataclasses import dataclass
from typing import Any

from jaxformer import schema
from jaxformer.errors import InputError

ALL = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of an adapter.

    Attributes:
        rank: Number r of columns of B and rows of A.
        alpha: The scale is alpha / rank.
        targets: Names of modules in the checkpoint that are changed ("q_proj"), or their ends with more of the path
            ("self_attn.q_proj"); or one regular expression on whole names. "all-linear": all that can be changed, see
            `adaptable`.
        use_rslora: Whether the scale is alpha / sqrt(rank) (Kalajdzievski 2023).
        modules_to_save: Modules of the checkpoint that are trained as a whole and saved with the adapter, for example a
            new "classifier".
    """

    rank: int = 8
    alpha: float = 8.0
    targets: str | tuple[str, ...] = ALL
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an impossible rank, and no targets."""
        if not (schema.is_integer(self.rank) and self.rank >= 1):
            raise InputError(f"rank={self.rank!r} must be a whole number of at least 1")
        if not schema.is_number(self.alpha):
            raise InputError(f"alpha={self.alpha!r} must be a number")
        if not is_targets(self.targets):
            raise InputError(f"targets={schema.shown(self.targets)} must be names of modules, or {ALL!r}")
        if self.modules_to_save and (isinstance(self.modules_to_save, str) or not is_targets(self.modules_to_save)):
            raise InputError(f"modules_to_save={schema.shown(self.modules_to_save)} must be several names of modules")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise InputError(f"targets={schema.shown(self.targets)} is no regular expression: {error}") from None
        for name in ("targets", "modules_to_save"):  # hashable, as settings of compiled programs are
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, str) else tuple(value))

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def matches(self, module: str) -> bool:
        """Return whether a module of the checkpoint is among the targets, as in peft."""
        if isinstance(self.targets, str):
            return self.targets == ALL or re.fullmatch(self.targets, module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.targets)


def is_targets(value: Any) -> bool:
    """Return whether a value is a name, or several."""
    several = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one for one in value)
    return several or (isinstance(value, str) and bool(value))
