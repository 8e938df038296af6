"""What differs between a call of `generate()` in transformers and here, and what of it rounding decides."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from hf_pairs import Pair

from jaxformer.config import MoEConfig

TIE, ROUTER_TIE = 1e-4, 1e-5  # below these distances, of scores of tokens and of experts, rounding decides
LOST = -1e5  # the score of a beam without a sequence, whatever it is divided by


def difference(pair: Pair, call: dict[str, Any], ours: Any, theirs: Any) -> str:
    """What differs: "" nothing, "tie: ..." a choice between equals, else what and where."""
    found = found_difference(call, ours, theirs)
    if found and not found.startswith("tie") and nothing_left(theirs):
        return f"tie: of no numbers: {found}"
    if found and not found.startswith("tie") and routing_margin(pair, call, theirs.sequences.numpy()) < ROUTER_TIE:
        return f"tie: of a router: {found}"
    return found


def found_difference(call: dict[str, Any], ours: Any, theirs: Any) -> str:
    """The same, whatever a router does."""
    expected, steps = theirs.sequences.numpy(), len(theirs.scores)
    beams = call.get("num_beams", 1) > 1
    equal = ours.sequences.shape == expected.shape and np.array_equal(ours.sequences, expected)
    if beams:
        scores = theirs.sequences_scores.numpy()
        if not close(ours.sequences_scores, scores):
            return f"scores {ours.sequences_scores} instead of {scores}"
        if equal and ours.beam_indices.tolist() != theirs.beam_indices.tolist():
            return "tie: other beams led to the same tokens"
    if not equal:
        found = f"{ours.sequences.tolist()} instead of {expected.tolist()}"
        if beams:
            if words(ours, call) == words(theirs, call):
                return f"other padding: {found}"
            # Where fewer sequences are possible than beams, what stands in the places left over nothing decides.
            pairs = zip(words(ours, call), words(theirs, call), ours.sequences_scores, strict=True)
            lost = all(score < LOST for our, their, score in pairs if our != their)
            return f"tie: {'of lost beams' if lost else 'of scores'}: {found}"
        width, P = min(ours.sequences.shape[1], expected.shape[1]), expected.shape[1] - steps
        unequal = np.argwhere(ours.sequences[:, :width] != expected[:, :width])
        if not len(unequal):
            return f"other lengths: {found}"
        row, column = unequal[np.argmin(unequal[:, 1])]
        if column < P:
            return f"other prompts: {found}"
        best, second = theirs.scores[column - P][row].topk(2).values.tolist()
        return f"tie: {found}" if best - second < TIE else found
    if not beams:  # of which rows that lead to nothing may be others
        for name in ("scores", "logits"):
            if (theirs_found := getattr(theirs, name)) is not None and not pages_equal(
                getattr(ours, name), np.stack([page.numpy() for page in theirs_found]), ours, call
            ):
                return f"other {name}"
    return ""


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether scores are the same, but for rounding; infinite where the others are."""
    finite = np.isfinite(theirs)
    if ours.shape != theirs.shape or not np.array_equal(ours[~finite], theirs[~finite]):
        return False
    gaps, sizes = np.abs(ours[finite] - theirs[finite]), np.abs(theirs[finite])
    return bool((gaps <= TIE * np.maximum(1, sizes)).all())


def pages_equal(ours: np.ndarray, theirs: np.ndarray, found: Any, call: dict[str, Any]) -> bool:
    """Whether the scores of all steps are the same, as long as a row goes on."""
    if ours.shape != theirs.shape:
        return False
    tokens = found.sequences[:, found.sequences.shape[1] - len(ours) :]
    ended = np.cumsum(np.isin(tokens, call["eos_token_id"]), axis=1) - np.isin(tokens, call["eos_token_id"]) > 0
    ended = ended.T
    return close(ours[~ended], theirs[~ended])


def nothing_left(theirs: Any) -> bool:
    """Whether some scores of transformers are no numbers, so that no token is better than another.

    A raised EOS token of the lowest number that `remove_invalid_values` writes becomes infinite, and the logarithm of
    the softmax of that NaN.
    """
    return any(bool(page.isnan().any()) for page in theirs.scores)


def words(found: Any, call: dict[str, Any]) -> list[list[int]]:
    """The generated tokens up to the first EOS token, the prompt with them."""
    generated = found.beam_indices.shape[1]
    rows = []
    for row in np.asarray(found.sequences).tolist():
        start = len(row) - generated
        end = next((i for i in range(start, len(row)) if row[i] in call["eos_token_id"]), len(row))
        rows.append(row[: end + 1])
    return rows


def routing_margin(pair: Pair, call: dict[str, Any], sequences: np.ndarray) -> float:
    """By how much the last expert or group that a token was sent to was better than the next; infinity without any."""
    model, margins = pair.ours.model, [np.inf]
    if not any(isinstance(block.feed_forward, MoEConfig) for block in model.config.main.blocks):
        return np.inf
    mask = call.get("attention_mask")
    mask = np.asarray(call["input_ids"]) != call["pad_token_id"] if mask is None else np.asarray(mask)
    mask = np.repeat(mask, len(sequences) // len(mask), axis=0)
    valid = np.concatenate([mask == 1, np.ones((len(sequences), sequences.shape[1] - mask.shape[1]), bool)], axis=1)
    places = jnp.asarray(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    observed = model(
        jnp.asarray(sequences), inputs_mask=jnp.asarray(valid), position_ids=places, return_intermediates=True
    )
    for block, seen in zip(model.decoder.blocks, observed.decoder.routing, strict=True):
        if seen is None:
            continue
        experts, router = block.feed_forward, block.feed_forward.config.router
        scores, best = np.asarray(seen.probabilities)[valid], 1
        if experts.router_bias is not None:
            scores, best = 1 / (1 + np.exp(-np.asarray(seen.logits)[valid])) + np.asarray(experts.router_bias[...]), 2
        grouped = np.sort(scores.reshape(len(scores), router.groups, -1), axis=-1)
        strength = grouped[..., -best:].sum(axis=-1)
        ranked = np.sort(strength, axis=-1)[:, ::-1]
        if router.groups > router.top_k_groups:
            margins.append(np.min(ranked[:, router.top_k_groups - 1] - ranked[:, router.top_k_groups]))
        kept = np.where(strength >= ranked[:, [router.top_k_groups - 1]], 0, -np.inf)[..., None]
        among = np.sort((grouped + kept).reshape(len(scores), -1), axis=-1)[:, ::-1]
        chosen = experts.config.top_k
        margins.append(np.min(among[:, chosen - 1] - among[:, chosen]))
    return float(min(margins))
