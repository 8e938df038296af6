"""Translate the lines of a file with beam search: T5, Marian, BART, mBART, or a run of `--task translate`.

python examples/translate.py my-marian english.txt german.txt
python examples/translate.py my-mbart english.txt german.txt en_XX de_DE
"""

import sys
import time
from pathlib import Path

import jaxformer

BATCH = 32


def main(
    folder: str,
    source: str,
    output: str,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    max_new_tokens: int = 64,
) -> None:
    """Write a translation for every line; an empty one stays empty."""
    lm = jaxformer.from_pretrained(folder)
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    # Lines of like length go together: little is padded, and few programs are compiled.
    order = sorted((place for place, line in enumerate(lines) if line.strip()), key=lambda place: len(lines[place]))
    found, start = [""] * len(lines), time.perf_counter()
    for first in range(0, len(order), BATCH):
        places = order[first : first + BATCH]
        answers = lm.translate(
            [lines[place] for place in places],
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            num_beams=4,
            early_stopping=True,
            max_new_tokens=max_new_tokens,
        )
        for place, answer in zip(places, answers, strict=True):
            found[place] = answer
    Path(output).write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    print(f"{len(order)} lines in {time.perf_counter() - start:.1f} s: {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
