"""GPT-2 of transformers in llama.cpp, where llama-cpp-python and gguf are installed."""

import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import cores

HERE = find_spec("llama_cpp") is not None and find_spec("gguf") is not None
FLOAT32 = 0  # the name of this type in llama.cpp, for keys and values too

Continue = Callable[[np.ndarray, int], np.ndarray]


@cache
def in_llama_cpp(model: Any, quantization: str | None = None) -> Continue | None:
    """(prompts [B, P], new tokens) -> sequences [B, P + new tokens], greedily; None without llama.cpp or for a Marian.

    quantization: "int8" for weights of 8 bits in blocks of 32 (Q8_0).
    """
    if not HERE or model.config.model_type != "gpt2":
        return None
    llama = import_module("llama_cpp")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(model, file, quantization)
        loaded = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    end, vocab_size = model.config.eos_token_id, model.config.vocab_size

    @cache
    def context_of(rows: int, length: int) -> tuple[Any, Any]:
        """A cache for so many rows of so many tokens, and room for what is read at once."""
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = rows * length
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = cores()
        settings.type_k = settings.type_v = FLOAT32
        return llama.llama_init_from_model(loaded, settings), llama.llama_batch_init(rows * length, 0, 1)

    def generate(prompts: np.ndarray, new_tokens: int) -> np.ndarray:
        context, batch = context_of(len(prompts), -(-(prompts.shape[1] + new_tokens) // 256) * 256)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        read = new = prompts
        position = 0
        for _ in range(new_tokens):
            batch.n_tokens = new.size
            for index, (row, place) in enumerate(np.ndindex(new.shape)):
                batch.token[index], batch.pos[index] = int(new[row, place]), position + place
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = place == new.shape[1] - 1
            if llama.llama_decode(context, batch) != 0:
                raise RuntimeError("llama.cpp could not take in these tokens")
            logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(prompts), vocab_size))
            logits[:, end] = -np.inf
            position += new.shape[1]
            new = logits.argmax(axis=1)[:, None]
            read = np.concatenate([read, new], axis=1)
        return read

    return generate


def write_gguf(model: Any, file: Path, quantization: str | None) -> None:
    """A GPT-2 without a vocabulary, in the format of llama.cpp."""
    gguf = import_module("gguf")
    config = model.config
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in model.transformer.state_dict().items():
        weight = tensor.numpy(force=True)
        weight = np.ascontiguousarray(weight.T if "c_" in name else weight)  # [outputs, inputs]
        kind = gguf.GGMLQuantizationType.F32
        if quantization and weight.ndim == 2 and "wpe" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quants.quantize(weight, kind)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
