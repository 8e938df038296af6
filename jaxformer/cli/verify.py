"""`jaxformer verify FOLDER`: a checkpoint in transformers and in jaxformer, compared layer by layer."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.errors import InputError, shortened
from jaxformer.flags import optional
from jaxformer.layers import Classifier
from jaxformer.model import Transformer
from jaxformer.ops import cross_entropy
from jaxformer.pretrained import Pretrained, family_of, from_pretrained
from jaxformer.pretrained.tokens import encode
from jaxformer.pretrained.weights import named, place, tensors_of

BOUND = 1e-5  # times the largest reference entry, where that exceeds 1
LENGTH = 12  # tokens that are drawn where there is no prompt
NEW_TOKENS = 20

Inputs = dict[str, Any]  # token ids by the names of transformers


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """checkpoint folder as transformers writes it"""
    prompt: Annotated[str | None, optional("TEXT")] = None
    """text to compare on (default: a few tokens drawn at random)"""
    shapes: bool = False
    """list every tensor of the checkpoint with its shape as well"""


class Comparison(NamedTuple):
    """Distances of one result from its reference.

    Both relative to the largest entry of the reference where that exceeds 1 (of the loss, absolute); of gradients,
    always to the largest entry, so that terms that cancel leave more rounding than the bound in either program: there
    transformers' own decides.

    Attributes:
        where: Part of the model, such as "decoder layer 1", "output" or "gradients".
        what: Name of the result, such as "attention map" or "logits".
        ours: Distance between jaxformer and transformers, both in float32.
        rounding: Distance between transformers in float32 and in float64.
    """

    where: str
    what: str
    ours: float
    rounding: float

    @property
    def departs(self) -> bool:
        """Whether we are beyond the bound, and in gradients beyond what rounding explains too."""
        return not self.ours <= (max(BOUND, 4 * self.rounding) if self.where == "gradients" else BOUND)


class Reference(NamedTuple):
    """Results of transformers for some inputs.

    Attributes:
        values: Hidden states [1, T, D] and attention maps [1, N, T, S], a list over layers, by stack and kind.
        logits: [1, T, V] or [1, T, classes]; of a classifier [1, classes]; the hidden states where there is no head.
        loss: Mean cross-entropy of `expected_labels`, in nats.
        gradients: Gradients of the loss by the names of the checkpoint's tensors.
        seconds: Duration of a forward pass.
    """

    values: dict[tuple[str, str], list[np.ndarray]]
    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]
    seconds: float


def main(argv: list[str]) -> None:
    """Print the comparison; exit status 1 if something departs."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("verify"),
        description="Compare a checkpoint in jaxformer with the same one in transformers, layer by layer.",
    )
    lm = from_pretrained(arguments.folder, dtype="float32")
    inputs = make_inputs(lm, arguments.prompt)
    torch_model = load_reference(arguments.folder, lm.model)
    table = family_of(lm.settings).table(lm.model.config)
    if arguments.shapes:
        for name, tensor in tensors_of(lm.model, table).items():
            print(f"{name:60} {list(tensor.shape)}")
        print()
    single = reference(lm, torch_model, inputs)
    exact = reference(lm, torch_model.double(), inputs)
    comparisons = [*compare(lm, inputs, single, exact)]
    print(f"{'':22}{'':16}{'jaxformer from':>16}{'transformers from':>20}")
    print(f"{'':22}{'':16}{'transformers':>16}{'its float64':>20}")
    for line in comparisons:
        print(f"{line.where:22}{line.what:16}{line.ours:16.1e}{line.rounding:20.1e}{'  departs' * line.departs}")
    same = "decoder" not in kind(lm.model) or print_tokens(lm, torch_model.float(), inputs)
    departed = next((line for line in comparisons if line.departs), None)
    if departed or not same:
        where = f"{departed.where}, {departed.what}: {departed.ours:.1e}" if departed else "the generated tokens"
        print(f"differs by more than {BOUND:.0e}, first at {where}", file=sys.stderr)
        sys.exit(1)
    beyond = any(line.ours > BOUND for line in comparisons)
    print(f"equal: everything within {BOUND:.0e}{', but for the rounding of gradients in transformers' * beyond}")


def kind(model: Transformer) -> str:
    """Return the kind of a model: of those that generate by their stacks, of others by their head."""
    if isinstance(model.head, Classifier):
        kinds = {"ClassifierConfig": "classifier", "TokenClassifierConfig": "tagger", "SpanConfig": "answerer"}
        return kinds[type(model.head.config).__name__]
    if model.decoder is not None:
        return "decoder" if model.encoder is None else "encoder-decoder"
    kinds = {"Head": "head", "Discriminator": "discriminator"}
    return kinds.get(type(model.head).__name__, "bare")


def load_reference(folder: Path, model: Transformer) -> Any:
    """Return the model in transformers, in float32. Raises InputError if that is not installed or cannot open it."""
    try:
        import torch
        import transformers
    except ImportError:
        raise InputError("verify compares with transformers: pip install torch transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    opener = {
        "head": transformers.AutoModelForMaskedLM,
        "classifier": transformers.AutoModelForSequenceClassification,
        "tagger": transformers.AutoModelForTokenClassification,
        "answerer": transformers.AutoModelForQuestionAnswering,
        "discriminator": transformers.AutoModelForPreTraining,
        "bare": transformers.AutoModel,
        "decoder": transformers.AutoModelForCausalLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }[kind(model)]
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    try:
        return opener.from_pretrained(folder, dtype=torch.float32, **plain)
    except Exception as error:  # whatever the reason, it is theirs
        raise InputError(f"transformers cannot open {folder}: {shortened(str(error), 150)}") from None


def make_inputs(lm: Pretrained, prompt: str | None) -> Inputs:
    """Return token ids [1, T] to compare on.

    An encoder-decoder also gets those of its decoder, behind the start token.
    """
    rng = np.random.default_rng(0)
    source, target = lm.model.vocab_sizes
    positions = lm.model.max_length if source is None else lm.model.max_source_length
    drawn = rng.integers(0, source or target, (1, min(LENGTH, positions or LENGTH)))
    if prompt is not None:
        drawn = np.array([read_prompt(lm, prompt, positions)])
    if lm.model.config.targets_from is not None:  # whose decoder reads the same
        drawn[:, -1] = getattr(getattr(lm.model.config.head, "pooled", None), "eos_id", drawn[0, -1])
        return {"input_ids": drawn}
    if source is None or target is None:
        return {"input_ids": drawn}
    targets = np.append(lm.generation.decoder_start_token_id or 0, rng.integers(0, target, LENGTH))
    return {"input_ids": drawn, "decoder_input_ids": targets[None, : lm.model.max_length]}


def read_prompt(lm: Pretrained, prompt: str, positions: int | None) -> list[int]:
    """Return the token ids of a prompt. Raises InputError where the model cannot read it."""
    if lm.tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read a prompt with: leave --prompt out")
    (ids,) = encode(lm.tokenizer, [terminal.argument_text("--prompt", prompt)])
    if len(ids) < 2:  # each token is to predict the next
        raise InputError(f"--prompt has {len(ids)} tokens: give at least 2, or leave it out")
    if positions is not None and len(ids) > positions:
        raise InputError(f"--prompt has {len(ids)} tokens, more than the {positions} positions of the model")
    return ids


def reference(lm: Pretrained, model: Any, inputs: Inputs) -> Reference:
    """Return the results of transformers for the inputs."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    model.eval().zero_grad()
    tensors = {name: torch.tensor(ids) for name, ids in inputs.items()}
    with torch.no_grad():
        model(**tensors)
        start = time.perf_counter()
        model(**tensors)
        seconds = time.perf_counter() - start
    found = model(**tensors, output_hidden_states=True, output_attentions=True)
    if "start_logits" in found:
        logits = torch.stack([found.start_logits, found.end_logits], dim=-1)
    else:
        logits = found.last_hidden_state if "last_hidden_state" in found else found.logits
    labels = torch.tensor(expected_labels(inputs, tuple(logits.shape)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    loss.backward()
    values = {(stack, what): [array.detach().numpy() for array in found[name]] for stack, what, name in names(lm.model)}
    gradients = {name: leaf.grad for name, leaf in model.named_parameters() if leaf.grad is not None}
    in_files = {name: grad.numpy() for name, grad in revert_weight_conversion(model, gradients).items()}
    return Reference(values, logits.detach().numpy(), loss.item(), in_files, seconds)


def expected_labels(inputs: Inputs, shape: tuple[int, ...]) -> np.ndarray:
    """Return labels for logits of a shape: the next token where there are logits of each, else the first class.

    -100, which does not count, behind the last token.
    """
    read = inputs.get("decoder_input_ids", inputs["input_ids"])
    if shape[:-1] != read.shape or read.max() >= shape[-1]:
        return np.zeros(shape[:-1], int)
    return np.append(read[:, 1:], [[-100]], axis=1)


def names(model: Transformer) -> list[tuple[str, str, str]]:
    """Return stack, kind and field of an output for each tuple of states or maps."""
    if model.encoder is None or model.decoder is None:
        stack = "encoder" if model.decoder is None else "decoder"
        return [(stack, "hidden state", "hidden_states"), (stack, "attention map", "attentions")]
    kinds = (("hidden state", "hidden_states"), ("attention map", "attentions"))
    both = [(stack, what, f"{stack}_{name}") for stack in ("encoder", "decoder") for what, name in kinds]
    return [*both, ("decoder", "cross-attention", "cross_attentions")]


def compare(lm: Pretrained, inputs: Inputs, single: Reference, exact: Reference) -> Iterator[Comparison]:
    """Yield every state and map from the first layer to the last, then logits, loss and gradients."""
    ours = lm(**inputs, output_hidden_states=True, output_attentions=True)
    for stack, what, name in names(lm.model):
        for index, our in enumerate(getattr(ours, name)):
            layer = index + (what != "hidden state")
            where = f"{stack} layer {layer}" if layer else f"{stack} embedding"
            theirs, true = single.values[stack, what][index], exact.values[stack, what][index]
            yield Comparison(where, what, distance(our, theirs), distance(theirs, true))
    yield Comparison("output", "logits", distance(ours.logits, single.logits), distance(single.logits, exact.logits))
    last = [np.asarray(logits)[0].reshape(-1, logits.shape[-1])[-1, :4] for logits in (ours.logits, single.logits)]
    print(f"logits: ours {last[0]} / transformers {last[1]} / max diff {np.abs(ours.logits - single.logits).max():.1e}")
    loss, gradients, seconds = loss_and_gradients(lm, inputs)
    print(f"loss:   ours {loss:.6f} / transformers {single.loss:.6f}")
    times = f"ours {seconds * 1e3:.1f} ms, compiled / transformers {single.seconds * 1e3:.1f} ms"
    print(f"time:   {times} for a forward pass\n")
    yield Comparison("output", "loss", abs(loss - single.loss), abs(single.loss - exact.loss))
    table = family_of(lm.settings).table(lm.model.config)
    # What transformers does not train, the bias of BART's logits, has no gradient there; that of key biases is zero.
    untrained = {name: np.full_like(tensor, np.nan) for name, tensor in tensors_of(lm.model, table).items()}
    places = [untrained | named(found.gradients, table) for found in (single, exact)]
    theirs, true = (place(lm.model.config, arrays, table) for arrays in places)
    rows = zip(*map(jax.tree.leaves, (gradients, theirs, true)), strict=True)
    pairs = [(share(ours, theirs), share(theirs, true)) for ours, theirs, true in rows if np.abs(true).max() > 1e-6]
    yield Comparison("gradients", "of all tensors", *map(float, np.max(pairs, axis=0)))


def loss_and_gradients(lm: Pretrained, inputs: Inputs) -> tuple[float, Any, float]:
    """Return our loss of predicting each next token, its gradients, and the seconds of a forward pass."""
    ids, targets = inputs["input_ids"], inputs.get("decoder_input_ids")

    def loss(model: Transformer) -> jax.Array:
        logits = model(jnp.asarray(ids), None if targets is None else jnp.asarray(targets))
        return cross_entropy(logits, jnp.asarray(expected_labels(inputs, logits.shape)))

    value, gradients = jax.jit(jax.value_and_grad(loss))(lm.model)
    jax.block_until_ready(lm(**inputs).logits)
    start = time.perf_counter()
    jax.block_until_ready(lm(**inputs).logits)
    return float(value), gradients, time.perf_counter() - start


def distance(ours: Any, theirs: Any) -> float:
    """Return the largest difference, relative to the largest reference entry where that exceeds 1."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def share(ours: Any, theirs: Any) -> float:
    """Return the largest difference, relative to the largest reference entry."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def print_tokens(lm: Pretrained, model: Any, inputs: Inputs) -> bool:
    """Generate greedily and with four beams in both; whether all tokens are the same."""
    import torch

    same, read = True, 1 if lm.model.encoder else inputs["input_ids"].shape[1]
    new_tokens = min(NEW_TOKENS, (lm.model.max_length or sys.maxsize) - read)
    if not new_tokens:
        print("no tokens are generated: the prompt takes all positions of the model")
        return same
    for beams in (1, 4):
        settings = {"max_new_tokens": new_tokens, "num_beams": beams, "do_sample": False}
        ids = inputs["input_ids"]
        ours = lm.generate(ids, np.ones_like(ids), **settings).sequences
        mask = torch.ones(ids.shape, dtype=torch.long)
        with torch.no_grad():
            theirs = model.generate(torch.tensor(ids), attention_mask=mask, **settings).numpy()
        equal = np.array_equal(ours, theirs)
        search = "beam 4" if beams > 1 else "greedy"
        print(f"{search}: {'identical' if equal else 'different'} tokens, {ours[0].tolist()}")
        same &= equal
    return same
