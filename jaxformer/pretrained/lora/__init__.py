"""Low-rank adapters of checkpoints (LoRA, Hu et al. 2021, section 4.1), in the files of the package peft.

An adapter has two factors for each matrix W of the checkpoint that it changes: W + scale B A. `apply` returns the model
with these products beside its weights, under `jax.jit` as well, so that a training step differentiates it by the
factors and by nothing else; `merge` adds them to the weights. The table of the family's weights says which of our
parameters a matrix of the checkpoint contains: where queries, keys and values share one (GPT-2), they share A, as in
peft.

    adapter = lora.init(lm, lora.LoraConfig(rank=8, alpha=16, targets=("q_proj", "v_proj")), key=jax.random.key(0))
    gradient = jax.grad(lambda adapter: loss(lora.apply(lm.model, adapter), batch))(adapter)
    lora.save(adapter, "my-adapter")
"""

from jaxformer.pretrained.lora.adapter import Adapter, Factors, add, apply, init, merge
from jaxformer.pretrained.lora.config import ALL, LoraConfig
from jaxformer.pretrained.lora.files import CONFIG, load, save

__all__ = ["ALL", "CONFIG", "Adapter", "Factors", "LoraConfig", "add", "apply", "init", "load", "merge", "save"]
