"""Settings of training that starts from a checkpoint of Hugging Face."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained.lora import ALL, LoraConfig


@dataclass(frozen=True)
class StartSettings:
    """The checkpoint that training starts from."""

    model: Annotated[str | None, optional("FOLDER")] = None
    """a checkpoint folder of Hugging Face, or a hub id, whose weights are trained further; the default learning rate is
    then 5e-5, with --lora 2e-4 (default: new weights)"""
    freeze: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """parameters or modules that are not trained, by their names in `inspect`: "embedding", "decoder.blocks.0",
    "*.norm"; several times for several patterns"""
    lora: Annotated[int | None, optional("RANK")] = None
    """train low-rank adapters of this rank, for example 8, in place of the weights"""
    lora_alpha: Annotated[float | None, optional("FLOAT")] = None
    """alpha: adapters are scaled by alpha / rank (default: the rank)"""
    lora_targets: str = "all"
    """modules with adapters, by their names in the checkpoint, separated by commas: q_proj,v_proj; all: every linear
    map"""
    weights: Literal["full", "int8"] = "full"
    """int8: with --lora, keep the weights below the adapters in 8 bits (QLoRA), a quarter of the memory"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that need others."""
        if self.lora is None and (self.lora_alpha is not None or self.lora_targets != "all"):
            raise InputError("--lora-alpha and --lora-targets belong to --lora: give that too")
        if self.lora is not None and self.model is None:
            raise InputError("--lora adapts a checkpoint: give --model too")
        if self.weights != "full" and self.lora is None:
            raise InputError(f"--weights {self.weights} is for weights that are not trained: give --lora too")
        if self.freeze and self.model is None:
            raise InputError("--freeze keeps the weights of a checkpoint: give --model too")
        if self.lora_alpha == 0:
            raise InputError("--lora-alpha 0 leaves the adapters without effect: give another number")
        if self.lora is not None and self.freeze:
            raise InputError("--lora freezes all weights: leave --freeze out")
        if self.lora is not None:
            self.adapters  # noqa: B018  # refuses an impossible rank

    @property
    def adapters(self) -> LoraConfig:
        """The settings of the adapters."""
        rank = 1 if self.lora is None else self.lora
        alpha = float(rank if self.lora_alpha is None else self.lora_alpha)
        names = tuple(name.strip() for name in self.lora_targets.split(",") if name.strip())
        if not names:
            raise InputError("--lora-targets names no module: give q_proj,v_proj or all")
        targets = ALL if names in (("all",), (ALL,)) else names
        return LoraConfig(rank, alpha, targets)
