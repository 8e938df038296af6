"""List the families that open and those that do not; `make families` writes docs/families.md."""

from typing import Any

from hf_encoders import ENCODER, ENCODERS
from hf_models import DECODER, DECODERS, MODELS, TOKENS

from jaxformer.config import (
    ClassifierConfig,
    DiscriminatorConfig,
    HeadConfig,
    MoEConfig,
    SpanConfig,
    TokenClassifierConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.families import FAMILIES, REFUSED

TOP = """# Families

Made by `make families`. A family is what the `model_type` of a `config.json` names. Each of these opens with
`from_pretrained`, computes the same as transformers in logits, hidden states, attention maps, gradients and steps of
training ([parity](parity.md)), and is written back bit for bit.

- **generate**: `lm.generate` and `python generate.py --model FOLDER` ([guide](guides/generate.md)).
- **train**: the tasks that train it: `python train.py --task lm --model FOLDER` ([fine-tune](guides/fine-tune.md)).
- **LoRA**: adapters in the files of peft, read and written ([guide](guides/fine-tune.md)).
- **export**: any model of that shape is written as one of the family ([checkpoints](guides/checkpoints.md)).
- **heads**: what may follow the last hidden states.
"""
BELOW = """
## Not supported

What they have that is missing here. `from_pretrained` says so too.

| family | has |
|---|---|
"""
HEADS = {
    "Model": "bare",
    "ForCausalLM": "language model",
    "ForConditionalGeneration": "language model",
    "ForMaskedLM": "masked tokens",
    "ForSequenceClassification": "classes of sequences",
    "ForTokenClassification": "classes of tokens",
    "ForQuestionAnswering": "answers",
    "ForPreTraining": "replaced tokens",
}
KINDS = {
    "Model": type(None),
    "ForSequenceClassification": ClassifierConfig,
    "ForTokenClassification": TokenClassifierConfig,
    "ForQuestionAnswering": SpanConfig,
    "ForPreTraining": DiscriminatorConfig,
}
OF_CLASSES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


TASKS = {"language model": "lm", "masked tokens": "mlm", "classes of sequences": "classify"}
TASKS |= {"classes of tokens": "tag", "answers": "answer"}


def settings() -> dict[str, dict[str, Any]]:
    """Return a tiny config.json of each family."""
    found: dict[str, dict[str, Any]] = {}
    for tables, tokens in ((DECODERS, DECODER), (MODELS, TOKENS), (ENCODERS, ENCODER)):
        for config_class, given in tables.values():
            if config_class.model_type not in found:
                found[config_class.model_type] = config_class(**tokens | given).to_dict()
    return found


def opened(family: str, given: dict[str, Any], head: str) -> TransformerConfig | None:
    """Return our configuration of a config.json of a class with this head, None where it is refused."""
    try:
        return FAMILIES[family].config(given | {"architectures": [f"{FAMILIES[family].classes}{head}"]})
    except InputError:
        return None


def row(family: str, given: dict[str, Any]) -> str:
    """Return the line of a family."""
    config = FAMILIES[family].config(given)
    possible = OF_CLASSES if config.decoder else HEADS
    made = {head: found for head in possible if (found := opened(family, given, head))}
    heads = ["language model"] * bool(config.decoder) + [HEADS[head] for head in made if fits(made[head], head)]
    tasks = [task for head, task in TASKS.items() if head in heads]
    if config.encoder and config.decoder:
        tasks[0] = "translate"
    tasks += ["span"] * (family in ("t5", "mt5"))
    experts = any(isinstance(block.feed_forward, MoEConfig) for block in config.main.blocks)
    kind = "encoder-decoder" if config.encoder and config.decoder else "encoder" if config.encoder else "decoder"
    generates = "✓" if config.decoder else ""
    trained = ", ".join(f"`{task}`" for task in tasks)
    cells = [f"`{family}`", kind + ", experts" * experts, "✓", generates, trained, "✓", "✓", ", ".join(heads)]
    return f"| {' | '.join(cells)} |"


def fits(config: TransformerConfig, head: str) -> bool:
    """Return whether a class with this head has it here."""
    return isinstance(config.head, KINDS.get(head, HeadConfig))


def page() -> str:
    """Return docs/families.md."""
    columns = ("family", "kind", "load", "generate", "train", "LoRA", "export", "heads")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [row(family, given) for family, given in sorted(settings().items())]
    refused = [f"| `{family}` | {reason} |" for family, reason in sorted(REFUSED.items())]
    return "\n".join([TOP, *lines]) + "\n" + BELOW + "\n".join(refused) + "\n"


if __name__ == "__main__":
    print(page(), end="")
