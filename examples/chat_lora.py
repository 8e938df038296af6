"""Teach a chat model to answer, with an adapter of low rank that peft opens.

python examples/chat_lora.py my-chat-model conversations.jsonl my-adapter
"""

import json
import sys

import jax
import numpy as np
import optax

import jaxformer
from jaxformer import lora


def main(folder: str, data: str, output: str, steps: int = 100, batch_size: int = 8, rate: float = 1e-3) -> None:
    """Train on the lines {"messages": [...]} of a file: the last message of each is the answer to learn."""
    lm = jaxformer.from_pretrained(folder)
    with open(data, encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file]
    prompts = lm.chat([messages[:-1] for messages in conversations])  # one call renders all of them
    rows, learned = [], []
    for prompt, messages in zip(prompts, conversations, strict=True):
        both = (prompt, messages[-1]["content"])
        before, answer = (lm.tokenizer.encode(text, add_special_tokens=False).ids for text in both)
        rows.append([*before, *answer, lm.generation.eos_ids[0]])
        learned.append([-100] * len(before) + rows[-1][len(before) :])
    inputs, valid = jaxformer.pad(rows, multiple_of=32)
    labels, _ = jaxformer.pad(learned, -100, multiple_of=32)

    adapter = lora.init(lm, lora.LoraConfig(rank=8, alpha=16, targets="all-linear"), key=jax.random.key(0))
    optimizer = optax.adamw(rate)

    @jax.jit
    def step(adapter, state, model, inputs, valid, labels):
        def loss(adapter):
            logits = lora.apply(model, adapter)(inputs, inputs_mask=valid)
            return jaxformer.cross_entropy(logits[:, :-1], labels[:, 1:])

        value, gradient = jax.value_and_grad(loss)(adapter)
        updates, state = optimizer.update(gradient, state, adapter)
        return optax.apply_updates(adapter, updates), state, value

    state, rng = optimizer.init(adapter), np.random.default_rng(0)
    for number in range(steps):
        chosen = rng.integers(0, len(rows), batch_size)
        adapter, state, loss = step(adapter, state, lm.model, inputs[chosen], valid[chosen], labels[chosen])
        if number % 10 == 0:
            print(f"step {number}: loss {loss:.4f}")

    lora.save(adapter, output, base=folder)
    question = conversations[0][-2]["content"]
    print(question, "->", lora.merge(lm, adapter).complete(prompts[0], special_tokens=False, max_new_tokens=20))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
