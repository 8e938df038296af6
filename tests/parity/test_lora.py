"""Adapters beside peft: read and written in its files, with equal logits and equal training."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx
from hf_pairs import (
    FURTHER_NAMES,
    SAVERS,
    Batch,
    Pair,
    as_tensors,
    assert_close,
    make_batch,
    make_labels,
    marked,
    open_pair,
    our_loss,
)
from safetensors.numpy import load_file, save_file

from jaxformer import InputError, Transformer, as_pretrained, decoder_only, lora
from jaxformer.layers import Linear, QuantizedLinear
from jaxformer.ops import Quantized
from jaxformer.pretrained import Pretrained, from_pretrained, save_pretrained

pytestmark = [  # of peft, which uses what transformers is about to rename, and corrects what it was told of Conv1D
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
GPT = as_pretrained(Transformer(decoder_only(31, length=24, dim=24, layers=2, heads=3), rngs=nnx.Rngs(0)))
NO_HEAD = dataclasses.replace(lora.LoraConfig(rank=3, alpha=7.0), targets="all-linear")


def logits(lm: Pretrained, batch: Batch) -> np.ndarray:
    return np.asarray(lm(**batch).logits)


def their_logits(model: Any, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        found = model(**as_tensors(batch))
    return (found["logits"] if "logits" in found else found["last_hidden_state"]).numpy()


def drawn(adapter: lora.Adapter, std: float = 0.2) -> lora.Adapter:
    """An adapter that changes much."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: jnp.array(rng.normal(scale=std, size=leaf.shape), jnp.float32), adapter)


def real(batch: Batch, ours: np.ndarray) -> Any:
    """The entries of logits that count."""
    mask = batch["attention_mask"].astype(bool)
    return mask if mask.shape == ours.shape[:2] and "decoder_input_ids" not in batch else ...


# Of most families, what an adapter changes does not depend on further settings.
VARIANTS = {name for name in SAVERS if "unusual" in name or name.startswith("llama-")}


@pytest.mark.parametrize("name", marked(SAVERS, FURTHER_NAMES | VARIANTS))
def test_peft_opens_an_adapter_made_here(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_pair(name, tmp_path / "base")
    adapter = drawn(lora.init(pair.ours, NO_HEAD, key=jax.random.key(0)))
    lora.save(adapter, tmp_path / "adapter", base=tmp_path / "base")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"].endswith(
        "base"
    )
    batch = make_batch(pair, rng)
    ours = logits(lora.merge(pair.ours, adapter), batch)
    assert np.abs(ours - logits(pair.ours, batch)).max() > 1e-3
    theirs = their_logits(peft.PeftModel.from_pretrained(pair.theirs, tmp_path / "adapter").eval(), batch)
    assert_close(ours, theirs, real(batch, ours))
    again = lora.load(tmp_path / "adapter", pair.ours)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.factors, adapter.factors))


TARGETS: dict[str, Any] = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt-neox": ["query_key_value"],
    "deepseek-v3": ["kv_b_proj", "o_proj"],
    "t5": ["q", "v", "wo"],
    "bart": r".*decoder.*encoder_attn\.(q|k)_proj",
    "bert-masked": ["query", "value"],
    "bert-bare": ["query", "value"],
}


def make_peft(pair: Pair, **settings: Any) -> Any:
    """Their model with an adapter whose B is not zero."""
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.0, **settings)
    model = peft.get_peft_model(pair.theirs, config).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *TARGETS.items(),
        # Queries, keys and values side by side within groups of heads.
        pytest.param("codegen", ["qkv_proj"], marks=pytest.mark.slow),
        pytest.param("falcon-unusual", ["query_key_value"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_opens_here(
    name: str, targets: Any, rslora: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    pair = open_pair(name, tmp_path / "base")
    model = make_peft(pair, target_modules=targets, use_rslora=rslora)
    model.save_pretrained(tmp_path / "adapter")
    batch = make_batch(pair, rng)
    merged = lora.merge(pair.ours, lora.load(tmp_path / "adapter", pair.ours))
    ours = logits(merged, batch)
    assert_close(ours, their_logits(model, batch), real(batch, ours))
    save_pretrained(merged, tmp_path / "merged")
    np.testing.assert_array_equal(logits(from_pretrained(tmp_path / "merged"), batch), ours)


def exact(x: jax.Array, weight: Quantized) -> jax.Array:
    """The product with a weight of 8 bits, without rounding the activations."""
    return x @ (weight.values.astype(x.dtype) * weight.steps[..., None]).T


@pytest.mark.parametrize(
    "name",
    [
        "gpt-neox",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gpt2", "phi3", "deepseek-v3", "t5", "mixtral", "bert-classes")
        ),
    ],
)
def test_an_adapter_over_8_bits_is_the_one_over_the_rounded_weights(
    name: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QLoRA: the products beside a weight of 8 bits do what adding to it would do, as do gradients of the factors."""
    monkeypatch.setattr("jaxformer.layers.linear.int8_matmul", exact)
    pair = open_pair(name, tmp_path / "base")
    adapter = drawn(lora.init(pair.ours, NO_HEAD, key=jax.random.key(0)), std=0.1)
    rounded = pair.ours.model.quantize()
    dense = nnx.clone(rounded)
    for _, module in list(nnx.iter_modules(dense)):
        for part, linear in list(vars(module).items()):
            if isinstance(linear, QuantizedLinear):
                letters = "_" * len(linear.inputs + linear.outputs)
                plain = Linear(linear.inputs, linear.outputs, axes=letters, rngs=nnx.Rngs(0))
                plain.weight, plain.bias = nnx.Param(linear.dense_weight(), axes=letters), linear.bias
                setattr(module, part, plain)
    batch = make_batch(pair, rng)
    labels = make_labels(pair, rng, batch)

    def found_by(put: Callable[[Transformer, lora.Adapter], Transformer], model: Transformer) -> Any:
        return jax.jit(jax.value_and_grad(lambda adapter: our_loss(put(model, adapter), batch, labels)))(adapter)

    found, gradient = found_by(lora.apply, rounded)
    expected, their = found_by(lora.add, dense)
    assert abs(found - expected) < 1e-5
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(their), strict=True):
        assert_close(ours, theirs)
    with pytest.raises(InputError, match="8 bits"):
        lora.merge(dataclasses.replace(pair.ours, model=rounded), adapter)


@pytest.mark.parametrize(
    "name",
    [
        "bert-classes",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta-classes", "distilbert-classes")),
    ],
)
def test_a_classifier_is_trained_with_the_adapter(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_pair(name, tmp_path / "base")
    targets = ["q_lin", "v_lin"] if name.startswith("distil") else ["query", "value"]
    modules = ["pre_classifier", "classifier"] if name.startswith("distil") else ["classifier"]
    model = make_peft(pair, target_modules=targets, modules_to_save=modules, task_type="SEQ_CLS")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    batch, labels = make_batch(pair, rng), np.array([0, 1, 1])
    model.save_pretrained(tmp_path / "begun")
    adapter = lora.load(tmp_path / "begun", pair.ours)
    gradient = jax.grad(lambda adapter: our_loss(lora.apply(pair.ours.model, adapter), batch, labels))(adapter)
    adapter = jax.tree.map(lambda leaf, grad: leaf - 0.3 * grad, adapter, gradient)
    model(**as_tensors(batch), labels=torch.tensor(labels)).loss.backward()
    optimizer.step()
    ours = logits(lora.merge(pair.ours, adapter), batch)
    assert_close(ours, their_logits(model, batch))
    lora.save(adapter, tmp_path / "trained")
    again = peft.PeftModel.from_pretrained(SAVERS[name](tmp_path / "anew"), tmp_path / "trained").eval()
    assert_close(ours, their_logits(again, batch))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "deepseek-v3"])
def test_training_is_that_of_peft(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Three steps of AdamW on the factors alone."""
    pair = open_pair(name, tmp_path / "base")
    model = make_peft(pair, target_modules=TARGETS[name])
    model.save_pretrained(tmp_path / "adapter")
    adapter = lora.load(tmp_path / "adapter", pair.ours)
    batch = make_batch(pair, rng)
    length = batch["decoder_input_ids"].shape if "decoder_input_ids" in batch else batch["input_ids"].shape
    labels = rng.integers(3, 40, length)
    if "decoder_input_ids" not in batch:
        labels[batch["attention_mask"] == 0] = -100
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-5, weight_decay=0.01)
    optimizer = optax.adamw(1e-2, eps=1e-5, weight_decay=0.01)
    state = optimizer.init(adapter)

    @jax.jit
    def step(adapter: lora.Adapter, state: Any) -> Any:
        loss = lambda adapter: our_loss(lora.apply(pair.ours.model, adapter), batch, labels)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(adapter)
        updates, state = optimizer.update(gradient, state, adapter)
        return optax.apply_updates(adapter, updates), state, value

    losses = []
    for _ in range(3):
        theirs.zero_grad()
        expected = model(**as_tensors(batch), labels=torch.tensor(labels)).loss
        expected.backward()
        theirs.step()
        adapter, state, loss = step(adapter, state)
        losses.append(float(loss))
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "trained")
    trained = lora.load(tmp_path / "trained", pair.ours)
    for ours, their in zip(jax.tree.leaves(adapter), jax.tree.leaves(trained), strict=True):
        assert_close(ours, their)


def test_a_new_adapter_changes_nothing(rng: np.random.Generator) -> None:
    adapter = lora.init(GPT, lora.LoraConfig(rank=2, targets=("c_attn", "mlp.c_fc")), key=jax.random.key(0))
    assert {target.module.split(".", 3)[3] for target in adapter.targets} == {"attn.c_attn", "mlp.c_fc"}
    ids = rng.integers(31, size=(2, 5))
    np.testing.assert_array_equal(lora.merge(GPT, adapter)(ids).logits, GPT(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=true must be null or empty: nothing else is supported"),
        ({"modules_to_save": "wte"}, "modules_to_save"),
        ({"modules_to_save": ["wte"]}, r"missing base_model\.model\.transformer\.wte\.weight"),
        ({"bias": "all"}, 'bias="all" must be "none"'),
        ({"peft_type": "IA3"}, 'peft_type="IA3" must be "LORA"'),
        ({"r": 0}, "r=0 must be a whole number"),
        ({"r": 3}, r"lora_A\.weight is float32\[2, 24\], expected \[3, 24\]"),
        ({"target_modules": None}, "target_modules=null must be a string"),
        ({"target_modules": [3]}, "target_modules"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    lora.save(lora.init(GPT, lora.LoraConfig(rank=2), key=jax.random.key(0)), tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        lora.load(tmp_path / "adapter", GPT)
    assert "adapter_config.json" in str(error.value) or "base_model" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter = lora.init(GPT, lora.LoraConfig(rank=2), key=jax.random.key(0))
    lora.save(adapter, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    smaller = as_pretrained(Transformer(decoder_only(31, length=24, dim=24, layers=1, heads=3), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"no matrix for base_model\.model\.transformer\.h\.1\.attn\.c_attn"):
        lora.load(tmp_path / "adapter", smaller)
    with pytest.raises(InputError, match=r"another model: this one has no such decoder\.blocks\.1\.attention"):
        lora.merge(smaller, adapter)
    save_file({name: array for name, array in tensors.items() if "h.0.attn.c_proj.lora_B" not in name}, path)
    with pytest.raises(InputError, match=r"missing base_model\.model\.transformer\.h\.0\.attn\.c_proj\.lora_B"):
        lora.load(tmp_path / "adapter", GPT)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        lora.load(tmp_path / "adapter", GPT)
    with pytest.raises(InputError, match=r"has no adapter_config\.json: give the folder of an adapter"):
        lora.load(tmp_path, GPT)
    with pytest.raises(InputError, match=r"names no base model: open that, and give both to `jaxformer\.lora\.load`"):
        from_pretrained(tmp_path / "adapter")
    lora.save(adapter, tmp_path / "looped", base=tmp_path / "looped")
    with pytest.raises(InputError, match=r"as its base model, which has no config\.json"):
        from_pretrained(tmp_path / "looped")


def test_the_folder_of_an_adapter_opens_with_its_base(tmp_path: Path) -> None:
    save_pretrained(GPT, tmp_path / "base")
    adapter = lora.init(GPT, lora.LoraConfig(rank=2), key=jax.random.key(0))
    changed = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    lora.save(changed, tmp_path / "adapter", base=tmp_path / "base")
    opened = from_pretrained(tmp_path / "adapter", dtype="float32")
    ids = [[3, 1, 4, 1, 5]]
    expected = lora.merge(GPT, changed)(ids).logits
    np.testing.assert_allclose(opened(ids).logits, expected, atol=1e-6)
    assert np.abs(expected - GPT(ids).logits).max() > 0.01


def test_targets_that_match_nothing_are_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r'target "q_proj" matches nothing: there are c_attn, c_fc, c_proj'):
        lora.init(GPT, lora.LoraConfig(targets=("c_attn", "q_proj")), key=jax.random.key(0))
    assert lora.LoraConfig(targets=["c_attn"]) == lora.LoraConfig(targets=("c_attn",))  # pyrefly: ignore
    for settings, message in (
        ({"targets": "(c_attn"}, "no regular expression"),
        ({"rank": 0}, "rank=0"),
        ({"alpha": "2"}, "alpha='2'"),
        ({"targets": ()}, "targets="),
    ):
        with pytest.raises(InputError, match=message):
            lora.LoraConfig(**settings)
    config = lora.LoraConfig(modules_to_save=("classifier",))
    with pytest.raises(InputError, match='modules_to_save names "classifier", which the model does not have'):
        lora.init(GPT, config, key=jax.random.key(0))
