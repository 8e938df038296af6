"""The flags of every program, and command lines that are right."""

TEXT = [["--prompt", "abc"], ["--prompt", "abc", "--prompt", "deaf cab"], ["--input-file", "lines.txt"], []]
MODELS = ["gpt2", "bart", "bert"]
RUNS = ["runs/copy", "runs/lm"]
# The flags of each program, with a value that is right; None: a flag without a value.
FLAGS: dict[str, dict[str, str | None]] = {
    "generate": {
        "--beam": "2",
        "--greedy": None,
        "--temperature": "0.7",
        "--top-k": "3",
        "--top-p": "0.9",
        "--min-p": "0.1",
        "--repetition-penalty": "1.1",
        "--seed": "3",
        "--n-best": "2",
        "--length-penalty": "0.5",
        "--max-new-tokens": "3",
        "--input": "1 2",
        "--prompt": "abc",
        "--input-file": "lines.txt",
        "--model": "gpt2",
        "--raw": None,
        "--dtype": "bfloat16",
        "--weights": "int8",
        "--truncate": None,
        "--checkpoint": "runs/copy",
        "--task": "copy",
        "--json": None,
    },
    "classify": {"--model": "bert", "--input-file": "lines.txt", "--truncate": None, "--json": None},
    "embed": {
        "--model": "bert",
        "--input-file": "lines.txt",
        "--output": "out.npy",
        "--pooling": "cls",
        "--batch-size": "3",
        "--truncate": None,
    },
    "export": {"--checkpoint": "runs/lm", "--task": "lm"},
    "inspect": {"--checkpoint": "runs/lm", "--model": "bert", "--batch": "2", "--source-length": "7", "--length": "9"},
    "perplexity": {"--data": "text.txt", "--checkpoint": "runs/lm", "--task": "lm", "--field": "text"},
    "verify": {"--prompt": "abc", "--shapes": None},
    "visualize": {
        "--checkpoint": "runs/copy",
        "--task": "copy",
        "--input": "1 2",
        "--prompt": "1 2",
        "--output": "pictures",
        "--text": None,
        "--layer": "1",
        "--head": "1",
    },
    "train": {
        "--task": "copy",
        "--symbols": "6",
        "--min-length": "1",
        "--max-length": "5",
        "--dim": "16",
        "--layers": "1",
        "--heads": "2",
        "--d-ff": "7",
        "--norm-order": "post",
        "--dropout": "0.1",
        "--learning-rate": "0.01",
        "--warmup-steps": "1",
        "--warmup-ratio": "0.5",
        "--weight-decay": "0.1",
        "--beta2": "0.9",
        "--clip-norm": "1",
        "--steps": "1",
        "--batch-size": "4",
        "--accumulate": "2",
        "--label-smoothing": "0.1",
        "--dtype": "bfloat16",
        "--seed": "1",
        "--save-every": "1",
        "--output": "new",
        "--resume": None,
        "--eval-only": None,
        "--tensorboard": None,
        "--data": "text.txt",
        "--field": "text",
        "--validation": "text.txt",
        "--tokenizer": "char",
        "--vocab-size": "90",
        "--preset": "tiny",
        "--context": "8",
        "--rematerialize": None,
        "--evaluate-every": "1",
        "--evaluate-batches": "1",
        "--balance-loss": "0.1",
        "--model": "bert",
        "--freeze": "embedding",
        "--lora": "2",
        "--lora-alpha": "4",
        "--lora-targets": "all",
        "--average": "1",
        "--skip-bad": None,
        "--separate-vocabularies": None,
        "--source-prefix": "say: ",
        "--long": "cut",
        "--positions": "rotary",
        "--batch-tokens": "64",
        "--evaluate-pairs": "1",
        "--bleu-tokens": "none",
        "--mask-probability": "0.3",
    },
}
ENDLESS = {"--steps", "--evaluate-batches"}  # where a large number is no mistake, but takes long
COPY = ["--task", "copy", "--symbols", "6", "--max-length", "5", "--dim", "16", "--layers", "1", "--heads", "2"]
COPY += ["--batch-size", "4", "--warmup-steps", "5", "--steps", "1"]
LM = ["--task", "lm", "--data", "text.txt", "--context", "16", "--batch-size", "4", "--warmup-steps", "5"]
LM += ["--evaluate-batches", "1", "--steps", "1"]
SMALL = ["--max-length", "8", "--dim", "16", "--layers", "1", "--heads", "2", "--steps", "1"]
TRANSLATE = ["--task", "translate", "--data", "pairs.tsv", "--evaluate-pairs", "1", "--batch-tokens", "64", *SMALL]
CLASSIFY = ["--task", "classify", "--data", "pairs.tsv", "--batch-size", "4", *SMALL]
MLM = ["--task", "mlm", *LM[2:]]
TUNED = ["--task", "classify", "--data", "pairs.tsv", "--model", "bert", "--steps", "1", "--batch-size", "4"]
WHOLE: dict[str, list[list[str]]] = {
    "generate": [["--model", model, *text] for model in MODELS for text in TEXT if model != "bert"]
    + [["--checkpoint", run] for run in RUNS]
    + [["--checkpoint", "runs/lm", "--prompt", "The cat"], ["--checkpoint", "runs/copy", "--input", "1 2"], []],
    "classify": [["--model", "bert", "--input-file", "lines.txt"]],
    "embed": [["--model", "bert", "--input-file", "lines.txt"]],
    "export": [["exported", "--checkpoint", "runs/lm"]],
    "inspect": [[], ["small"], ["--checkpoint", "runs/copy"]],
    "perplexity": [["--data", "text.txt", *which] for which in (["--checkpoint", "runs/lm"], ["--model", "gpt2"], [])],
    "verify": [[model] for model in MODELS],
    "visualize": [["--checkpoint", run] for run in RUNS] + [["--model", model, "--input", "a"] for model in MODELS],
    "train": [COPY, LM, TRANSLATE, CLASSIFY, MLM, TUNED],
}
