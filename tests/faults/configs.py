"""Every key of every family's config.json, set to other legal values: ours equals transformers, or refuses by name.

A tiny model is made by transformers with one or two keys changed; what we make of its folder must have the same logits
within the bound of all parity tests, or be refused with the key in the message.
"""

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from hf_encoders import ENCODER, ENCODERS, HEADS, heads
from hf_models import DECODER, DECODERS, MODELS, PAD, TOKENS, VOCAB
from hf_pairs import BOUND, distance
from tally import Tally, main

from jaxformer.errors import InputError
from jaxformer.pretrained import Pretrained, as_pretrained, from_pretrained

Settings = dict[str, Any]
LENGTH = 13  # beyond every window and every original context of the tiny models
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
ROPES: list[Settings] = [
    {"rope_type": "default", "rope_theta": 77.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    YARN | {"rope_theta": 500.0},
    YARN | {"rope_theta": 500.0, "mscale": 0.7, "mscale_all_dim": 0.4},
    YARN | {"rope_theta": 500.0, "attention_factor": 0.6, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
    | {"original_max_position_embeddings": 8, "rope_theta": 500.0},
    {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
]
SCALINGS: list[Settings] = [{"rope_type": "linear", "factor": 2.0}, YARN, {"type": "linear", "factor": 3.0}]
ACTIVATIONS = [
    "relu",
    "gelu",
    "gelu_new",
    "silu",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "tanh",
    "gelu_fast",
    "swish",
    "relu2",
]
LAYERS = [["full_attention"], ["sliding_attention"], ["full_attention", "sliding_attention"]]
# Keys of other families, which this one may or may not know.
FOREIGN: Settings = {
    "attention_bias": True,
    "mlp_bias": True,
    "use_sliding_window": True,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "head_dim": 4,
    "num_key_value_heads": 1,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
    "query_pre_attn_scalar": 3,
    "layer_norm_eps": 1e-3,
    "rms_norm_eps": 1e-3,
    "layer_norm_epsilon": 1e-3,
    "scale_embedding": True,
    "use_bidirectional_attention": True,
    "is_decoder": True,
    "add_cross_attention": True,
    "position_embedding_type": "relative_key",
    "sliding_window_pattern": 2,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "rope_interleave": False,
    "use_parallel_residual": False,
    "no_rope_layers": [0, 1, 0],
    "tie_encoder_decoder": True,
    "normalize_before": True,
    "normalize_embedding": False,
    "add_final_layer_norm": True,
    "extra_pos_embeddings": 0,
    "static_position_embeddings": True,
    "add_bias_logits": True,
    "clip_qkv": 0.1,
    "qk_layernorm": True,
    "mrope_section": [1, 1, 1],
    "moe_layer_freq": 2,
    "aux_loss_alpha": 0.5,
    "num_labels": 3,
    "hidden_activation": "relu",
    "embedding_multiplier": 3.0,
    "residual_multiplier": 2.0,
}
# Keys that decide nothing about a forward pass in evaluation, or say what the file is instead of what the model does.
SILENT = re.compile(
    "_name_or_path|architectures|dtype|id2label|label2id|model_type|output_.*|problem_type|return_dict|.*_version"
    "|use_cache|initializer_.*|init_std|.*drop.*|.*_pdrop|.*aux_loss.*|chunk_size_feed_forward|_attn_.*|_experts_.*|pad_token_id"
    "|is_encoder_decoder|summary_.*|num_labels|vocab_size"
)


class Case(NamedTuple):
    """A family's base configuration, the head of an encoder, and what is changed: by the class and in the file."""

    base: str
    head: str | None
    made: Settings
    written: Settings

    def __str__(self) -> str:
        """The case, to be drawn again."""
        parts = [self.base, self.head, self.made and f"made with {self.made}", self.written and f"file {self.written}"]
        return " ".join(str(part) for part in parts if part)


def bases() -> list[tuple[str, str | None]]:
    """Return each family's two tiny models, encoders with each head."""
    plain = [(name, None) for name in {**DECODERS, **MODELS}]
    return plain + [(name, head) for name in ENCODERS for head in heads(name)]


def described(base: str) -> tuple[type, Settings]:
    """Return the configuration class of a base and its settings."""
    if base in ENCODERS:
        return ENCODERS[base][0], ENCODER | ENCODERS[base][1]
    if base in MODELS:
        return MODELS[base][0], TOKENS | MODELS[base][1]
    return DECODERS[base][0], DECODER | DECODERS[base][1]


def alternatives(key: str, value: Any, settings: Settings) -> list[Any]:
    """Return other legal values of a key that has `value` by default."""
    layers = settings.get("num_hidden_layers", 3)
    if key == "rope_parameters":
        return ROPES
    if key == "layer_types":
        return [(kinds * layers)[:layers] for kinds in LAYERS]
    if key == "no_rope_layers":
        return [[0] * layers, [1] * layers]
    if key == "mlp_only_layers":
        return [[0], [0, 2]]
    if key == "topk_method":
        return ["greedy", "group_limited_greedy", "noaux_tc"]
    if key == "feed_forward_proj":
        return ["relu", "gated-gelu", "gated-silu", "gelu", "silu"]
    if key in ("dense_act_fn", "hidden_act", "activation_function", "hidden_activation", "activation"):
        return ACTIVATIONS
    if isinstance(value, bool):
        return [not value]
    small: dict[str, list[Any]] = {
        "num_key_value_heads": [1, 3, 6],
        "head_dim": [None, 4, 8],
        "num_attention_heads": [2, 6, 12],
        "n_inner": [None, 9],
        "sliding_window": [None, 1, 5],
        "n_group": [None, 2, 3],
        "topk_group": [None, 1, 2],
        "q_lora_rank": [None, 5],
        "attn_logit_softcapping": [None, 1.5],
        "final_logit_softcapping": [None, 1.5],
        "use_bidirectional_attention": [True, False, None],
        "max_position_embeddings": [14, 29],
        "original_max_position_embeddings": [7, 29],
        "decoder_vocab_size": [VOCAB, 41],
        "classifier_dropout": [0.2, None],
        "query_pre_attn_scalar": [3, 50],
        "layer_norm_eps": [1e-3],
        "eos_token_id": [7, [7, 9]],
        "forced_eos_token_id": [7, None],
        "bos_token_id": [7],
    }
    if key in small:
        return small[key]
    if isinstance(value, int) and value < 64:
        return sorted({1, max(1, value - 1), value + 1})
    if isinstance(value, float):
        return [value * 3 + 1e-3]
    return [2, 3] if isinstance(value, int) else []


def singles() -> Iterator[Case]:
    """Yield each base with each key changed to each other value, and files with keys of old and hand-edited files."""
    for base, head in bases():
        config_class, settings = described(base)
        defaults = config_class(**settings).to_dict()
        yield Case(base, head, {}, {})
        for key, value in defaults.items():
            if not SILENT.fullmatch(key) or key in ("tie_word_embeddings",):
                yield from (
                    Case(base, head, {key: other}, {}) for other in alternatives(key, value, settings) if other != value
                )
        yield from (Case(base, head, {}, edit) for edit in edits(config_class, defaults))


def edits(config_class: Any, defaults: Settings) -> list[Settings]:
    """Return what people, old versions and other families write into a config.json beside today's keys."""
    found: list[Settings] = [{alias: 7} for alias in getattr(config_class, "attribute_map", {})]
    if "rope_parameters" in defaults:
        found += [{"rope_scaling": scaling} for scaling in SCALINGS]
        found += [{"rope_scaling": None}, {"rope_theta": 33.0}, {"partial_rotary_factor": 0.5}]
        found += [{"rotary_pct": 0.5}, {"rotary_emb_base": 44.0}, {"original_max_position_embeddings": 9}]
        bare = {"rope_parameters": None, "rope_theta": 33.0}
        found += [bare, bare | {"rope_scaling": YARN}, bare | {"rope_scaling": SCALINGS[0]}]
    if "dense_act_fn" in defaults:
        found += [{"dense_act_fn": name} for name in ("gelu_new", "silu", "tanh")]
        found += [
            {"feed_forward_proj": "silu"},
            {"scale_decoder_outputs": not defaults.get("scale_decoder_outputs", True)},
        ]
    flags = {key: value for key, value in defaults.items() if isinstance(value, bool) and not SILENT.fullmatch(key)}
    found += [{key: not value} for key, value in flags.items()]
    return found + [{key: value} for key, value in FOREIGN.items() if key not in defaults]


def pair(rng: np.random.Generator, singles: list[Case]) -> Case:
    """Draw two changes of one base at once."""
    one = singles[rng.integers(len(singles))]
    others = [case for case in singles if case[:2] == one[:2]]
    two = others[rng.integers(len(others))]
    return Case(one.base, one.head, one.made | two.made, one.written | two.written)


def make(case: Case, folder: Path) -> Any:
    """Return the model of transformers that a case describes, written to `folder`; None where it cannot be made."""
    config_class, settings = described(case.base)
    opener: Any = transformers.AutoModelForCausalLM
    if case.head is not None:
        opener = HEADS[case.head]
    elif case.base in MODELS:
        opener = transformers.AutoModelForSeq2SeqLM
    try:
        torch.manual_seed(7)
        model = opener.from_config(config_class(**settings | case.made)).eval()
        randomize(model)
        model.save_pretrained(folder)
        if case.written:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | case.written))
            model, info = type(model).from_pretrained(
                folder,
                output_loading_info=True,
                attn_implementation="eager",
                **({"experts_implementation": "eager"} if case.head is None else {}),
            )
            model.eval()
            if any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")):
                return None  # theirs draws new weights for what it does not find
        with torch.no_grad():
            model(**as_torch(inputs(model)))
    except Exception:
        return None
    return model


def randomize(model: Any) -> None:
    """Draw weights that make every part matter."""
    for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_floating_point() or "inv_freq" in key or parameter.dim() == 0 or "embed_scale" in key:
            continue
        learned = isinstance(parameter, torch.nn.Parameter) or key.endswith(("correction_bias", "final_logits_bias"))
        if learned and ("embed_positions" not in key or parameter.requires_grad):
            scale = ("norm" in key.lower() or "ln_" in key) and key.endswith("weight")
            mean = 1.0 if scale and "Gemma" not in type(model).__name__ else 0.0  # whose scales begin at one
            torch.nn.init.normal_(parameter.data, mean=mean, std=0.3)


def inputs(model: Any) -> Settings:
    """Return token ids [2, T] with padding behind the second row, and ids for a decoder behind an encoder."""
    rng = np.random.default_rng(3)
    limit = min(getattr(model.config, name, 1000) or 1000 for name in ("vocab_size", "decoder_vocab_size"))
    ids = rng.integers(3, limit, (2, LENGTH))
    mask = np.ones_like(ids)
    if model.config.is_encoder_decoder:
        mask[1, -4:] = 0
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": rng.integers(3, limit, (2, LENGTH - 2))}
    if isinstance(model.config, tuple(config for config, _ in ENCODERS.values())):
        mask[1, -4:], ids[1, -4:] = 0, model.config.pad_token_id or PAD
        return {"input_ids": ids, "attention_mask": mask}
    return {"input_ids": ids}


def as_torch(arrays: Settings) -> Settings:
    """Return the arrays as tensors."""
    return {name: torch.tensor(array) for name, array in arrays.items()}


def outcome(case: Case, folder: Path, *, compiled: bool = True) -> str:
    """Return what becomes of a case: "equal", "refused", "theirs refuses", or what is wrong with it.

    Args:
        case: What is changed.
        folder: Where to write the model.
        compiled: Whether ours is compiled as a whole. By single operations a case takes longer alone, but what it has
            compiled serves the next ones.
    """
    model = make(case, folder)
    if model is None or not np.isfinite(theirs := logits_of(model)).all():
        return "theirs refuses"
    given = inputs(model)
    try:
        with nullcontext() if compiled else jax.disable_jit():
            lm = from_pretrained(folder)
            ours = np.asarray(lm(**given).logits)
    except InputError as error:
        named = any(re.search(rf"\b{key}\b", str(error)) for key in case.made | case.written)
        return "refused" if named else f"refused without the key: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if ours.shape != theirs.shape:
        return f"has shape {ours.shape}, theirs {theirs.shape}"
    real = given.get("attention_mask", np.ones(theirs.shape[:-1])).astype(bool)
    chosen = real if real.shape == theirs.shape[:-1] else ...
    gap = distance(ours, theirs, chosen)
    if gap > BOUND:  # some settings multiply rounding: theirs is then as far from its own answer in float64
        rounding = distance(theirs, logits_of(model.double()), chosen)
        gap = 0.0 if gap <= 4 * rounding else gap
    return written(lm) or ("equal" if gap <= BOUND else f"differs by {gap:.1e}")


def written(lm: Pretrained) -> str | None:
    """Return what is lost where the settings are made of the model alone, None if nothing is."""
    try:
        as_pretrained(lm.model, family=lm.settings["model_type"])
    except InputError as error:
        return f"cannot be written: {error}"
    return None


def logits_of(model: Any) -> np.ndarray:
    """Return the logits of transformers (of a bare model its last hidden states)."""
    with torch.no_grad():
        found = model(**as_torch(inputs(model)))
    return found["logits" if "logits" in found else "last_hidden_state"].numpy()


def check(cases: Sequence[Case], name: str) -> Tally:
    """Try all cases."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tally, counts = Tally(name), Counter[str]()
    for case in cases:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = outcome(case, Path(folder), compiled=len(cases) < 200)
        fine = found in ("equal", "refused", "theirs refuses")
        counts[found if fine else "failed"] += 1
        tally.record(str(case), None if fine else found)
    print(f"{name}: {', '.join(f'{count} {found}' for found, count in sorted(counts.items()))}")
    return tally


def fuzz(cases: int, seed: int) -> Tally:
    """Try every single change, and as many pairs of changes as `cases`; with fewer than 500, as many of both."""
    rng, every = np.random.default_rng(seed), [*singles()]
    drawn = every if cases >= 500 else [every[index] for index in rng.integers(len(every), size=cases)]
    return check([*drawn, *(pair(rng, every) for _ in range(cases))], "config.json")


if __name__ == "__main__":
    main(fuzz, 3000)
