"""Prompts with completions and conversations as tokens, of which a language model learns the answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxformer.data import Corpus, Tokenizer
from jaxformer.data.examples import Kind, kind_of, read_conversations, read_prompts
from jaxformer.data.rows import settle
from jaxformer.errors import InputError
from jaxformer.pretrained import Pretrained
from jaxformer.pretrained.chat import ChatTemplate, Dialogue
from jaxformer.pretrained.tokens import decode, encode
from jaxformer.tasks.corpora import Texts, say_unknown, tokenizer_of
from jaxformer.tasks.language_settings import TextSettings
from jaxformer.tasks.rows import say

Coded = list[tuple[np.ndarray, bool]]  # tokens that follow each other, and whether they are learned
SHARE = 10  # one of so many examples is for validation, those at the end of a file


def read_examples(settings: TextSettings, kind: Kind, tokenizer: Tokenizer | None, lm: Pretrained | None) -> Texts:
    """Return the examples that the settings name, to train and to validate on.

    Args:
        settings: Of which `data` is a file of this kind.
        kind: "prompts" or "conversations".
        tokenizer: Reads prompts. None: the one that the settings ask for.
        lm: The checkpoint whose chat template writes conversations. None: there is none.

    Raises:
        InputError: A file has bad lines, or another kind of them, or nothing writes conversations.
    """
    source = Path(settings.data or "")
    if tokenizer is None and kind == "prompts":
        tokenizer = tokenizer_of(
            settings.tokenizer or "char",
            (part for row in read_prompts(source, skip_bad=True, say=lambda _: None) for part in row),
            settings.vocab_size,
        )

    def read(path: Path) -> Corpus:
        return read_corpus(path, kind, tokenizer, lm, skip_bad=settings.skip_bad)

    if settings.validation is None:
        corpora = split_examples(read(source))
        assert tokenizer is not None, "it has read them"
        return Texts(tokenizer, *corpora)
    other = Path(settings.validation)
    if kind_of(other, settings.field) != kind:
        raise InputError(f"{source} holds {kind}, and {other} does not: give both in one form")
    corpora = read(source), read(other)
    assert tokenizer is not None, "it has read them"
    return Texts(tokenizer, *corpora)


def read_corpus(
    path: Path, kind: Kind, tokenizer: Tokenizer | None, lm: Pretrained | None, *, skip_bad: bool = False
) -> Corpus:
    """Return the examples of a file.

    Args:
        path: The file.
        kind: "prompts" or "conversations".
        tokenizer: Reads them. None: there is none, for conversations without a checkpoint, which are refused.
        lm: The checkpoint whose chat template writes conversations. None: there is none.
        skip_bad: Whether to pass over bad lines.

    Raises:
        InputError: The file has bad lines, or nothing writes conversations.
    """
    if kind == "conversations":
        template = None if lm is None else lm.chat_format
        if template is None or lm is None or lm.tokenizer is None or tokenizer is None:
            raise InputError(f"{path} holds conversations: give --model, a checkpoint with a chat template")
        coded = code_dialogues(lm, read_dialogues(path, template, skip_bad=skip_bad))
        # Special tokens are no text: they do not count as bytes.
        texts = [[(decode(lm.tokenizer, ids.tolist()), answer) for ids, answer in example] for example in coded]
        return corpus_of(coded, texts, tokenizer)
    assert tokenizer is not None, "made by now"
    rows = read_prompts(path, skip_bad=skip_bad, say=say)
    texts = [[(prompt, False), (completion, True)] for prompt, completion in rows]
    corpus = corpus_of([code_prompt(tokenizer, *row) for row in rows], texts, tokenizer)
    say_unknown(f"examples of {path}", corpus, tokenizer, (part for row in rows for part in row))
    return corpus


def read_dialogues(path: Path, template: ChatTemplate, *, skip_bad: bool) -> list[Dialogue]:
    """Return the dialogues of a file of conversations."""
    rows, bad = read_conversations(path)
    dialogues = []
    for (number, _), found in zip(rows, template.dialogues([messages for _, messages in rows]), strict=True):
        if isinstance(found, InputError):
            bad.append((number, str(found)))
        else:
            dialogues += found
    settle(path, len(dialogues), bad, skip_bad=skip_bad, say=say)
    return dialogues


def code_dialogues(lm: Pretrained, dialogues: Sequence[Dialogue]) -> list[Coded]:
    """Return the tokens of dialogues; special tokens are those that the template writes."""
    assert lm.tokenizer is not None, "asked before"
    coded = iter(encode(lm.tokenizer, [text for dialogue in dialogues for text, _ in dialogue], special_tokens=False))
    return [[(np.array(next(coded), np.int32), answer) for _, answer in dialogue] for dialogue in dialogues]


def code_prompt(tokenizer: Tokenizer, prompt: str, completion: str) -> Coded:
    """Return the tokens of a prompt as it is read for generation, and those of its completion with the end."""
    before = np.array([*tokenizer.begin, *tokenizer.encode(prompt)], np.int32)
    return [(before, False), (np.append(tokenizer.encode(completion), tokenizer.end).astype(np.int32), True)]


def corpus_of(examples: Sequence[Coded], texts: Sequence[Dialogue], tokenizer: Tokenizer) -> Corpus:
    """Return examples as a corpus, each a document."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    parts = [part for example in examples for part in example]
    sizes = [sum(len(text.encode()) for text, learned in example if learned) for example in texts]
    return Corpus(
        np.concatenate([ids for ids, _ in parts]).astype(dtype),
        np.cumsum([sum(len(ids) for ids, _ in example) for example in examples]),
        np.array(sizes, np.int64),
        learned=np.concatenate([np.full(len(ids), learned) for ids, learned in parts]),
    )


def split_examples(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Return a corpus of examples without its last tenth, and that. Raises InputError for a single example."""
    count = len(corpus.ends)
    if count < 2:
        raise InputError("one example is too few to keep some for validation: give more, or --validation")
    kept = count - max(1, count // SHARE)
    place = int(corpus.ends[kept - 1])
    assert corpus.learned is not None, "of examples"
    return (
        Corpus(corpus.tokens[:place], corpus.ends[:kept], corpus.sizes[:kept], learned=corpus.learned[:place]),
        Corpus(corpus.tokens[place:], corpus.ends[kept:] - place, corpus.sizes[kept:], learned=corpus.learned[place:]),
    )
