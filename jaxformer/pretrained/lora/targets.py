"""The matrices and modules of a checkpoint that an adapter changes, by their names there."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxformer import schema
from jaxformer.errors import InputError, listed
from jaxformer.layers import Linear
from jaxformer.layers.experts import Experts
from jaxformer.model import abstract_model
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.families import family_of
from jaxformer.pretrained.layout import StoredTensor
from jaxformer.pretrained.lora.config import ALL, LoraConfig
from jaxformer.pretrained.weights import owner, stored_tensors

HEADS = {("head", "output"), ("head", "hidden")}  # of the vocabulary and of classes: peft leaves them out, too
# What peft calls the tasks of classes. Of SEQ_CLS it expects that the classifier is in the file, too.
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "MTModel": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
}


@dataclass(frozen=True)
class Target:
    """A matrix of the checkpoint that can be changed.

    Attributes:
        module: Name of the module in the checkpoint.
        tensor: Its tensor, and our parameters in it.
        inputs_first: Whether the tensor is [inputs, outputs].
        input_axes: Number of axes of our parameters that are inputs.
    """

    module: str
    tensor: StoredTensor
    inputs_first: bool
    input_axes: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""
        first, second = self.tensor.shape
        return (second, first) if self.inputs_first else (first, second)


def adaptable(lm: Pretrained) -> Iterator[Target]:
    """Yield the matrices of a checkpoint that can be changed: linear maps that are one tensor, without the head's.

    In models with experts these are the matrices of attention: peft takes the names of others for those of experts.
    """
    table = family_of(lm.settings).table(lm.model.config)
    model = abstract_model(lm.model.config)  # which has the checkpoint's matrices where lm has those of 8 bits
    mixtures = any(isinstance(part, Experts) for _, part in nnx.iter_modules(model))
    for tensor in stored_tensors(model, table):
        path = tensor.paths[0]
        module = owner(model, path)
        matrix = isinstance(module, Linear) and path[-1] == "weight" and path[:2] not in HEADS
        if matrix and not (mixtures and "feed_forward" in path):
            name = tensor.name.removesuffix(".weight")
            name = name if lm.model.head is not None else name.removeprefix(table.prefix)
            axes = len(module.inputs)
            yield Target(name, tensor, tensor.layout.groups[0][0] < axes, axes)


def chosen_targets(lm: Pretrained, config: LoraConfig) -> tuple[Target, ...]:
    """Return the targets of an adapter. Raises InputError where one matches nothing."""
    known = list(adaptable(lm))
    if config.targets == ALL:
        return tuple(known)
    for one in [config.targets] if isinstance(config.targets, str) else config.targets:
        alone = dataclasses.replace(config, targets=one if isinstance(config.targets, str) else (one,))
        if not any(alone.matches(target.module) for target in known):
            ends = sorted({target.module.rpartition(".")[2] for target in known})
            raise InputError(f"the target {schema.shown(one)} matches nothing: there are {listed(ends)}")
    return tuple(target for target in known if config.matches(target.module))


def replaced_tensors(lm: Pretrained, config: LoraConfig) -> tuple[StoredTensor, ...]:
    """Return the tensors of `modules_to_save`, named as in the base model's class.

    Files name modules that other models have, too: peft always has "score" beside "classifier".

    Raises:
        InputError: A module has experts with tensors of their own.
    """
    table = family_of(lm.settings).table(lm.model.config)
    bare = "" if lm.model.head is not None else table.prefix
    found = []
    for tensor in stored_tensors(abstract_model(lm.model.config), table) if config.modules_to_save else ():
        name = tensor.name.removeprefix(bare)
        if any(f".{module}." in f".{name}" for module in config.modules_to_save):
            found.append(dataclasses.replace(tensor, name=name))
    if any(tensor.experts is not None for tensor in found):
        raise InputError("modules_to_save names experts, which is not supported")
    return tuple(found)


def about_base(lm: Pretrained, config: LoraConfig, targets: tuple[Target, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the keys of `adapter_config.json` that come from the base model."""
    architecture = next(iter(lm.settings.get("architectures") or ()), "")
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    return (
        ("task_type", None if task == "SEQ_CLS" and not config.modules_to_save else task),
        ("fan_in_fan_out", any(target.inputs_first for target in targets)),
    )
