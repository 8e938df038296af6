"""A pretrained model as people are used to it: called with token ids and a mask, answering by the names they know."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast, overload

import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation import Generated, allow_regex, generate
from jaxformer.generation.api import BESIDE
from jaxformer.generation.arrays import pad, token_array, until_end
from jaxformer.generation.config import DEFAULT_NEW_TOKENS, plain
from jaxformer.pretrained import languages, tokens
from jaxformer.pretrained.arguments import check_ends, checked_ids, flag, optional_mask, positions, token_types
from jaxformer.pretrained.chat import ChatTemplate, Messages, chat_template
from jaxformer.pretrained.forward import Output, forward
from jaxformer.pretrained.phrases import allowed_automaton
from jaxformer.pretrained.reader import Reader
from jaxformer.pretrained.texts import text_list, text_of, token_rows


@dataclass(frozen=True, eq=False)
class Pretrained(Reader):
    """Contents of a checkpoint folder: the fields of `Reader`, and what the model computes of token ids and texts.

    The model is a pytree of parameters like any other: train it, replace it.
    """

    def quantize(self) -> "Pretrained":
        """Return the same with linear maps of 8 bits, see `Transformer.quantize`: neither to be trained nor saved."""
        return replace(self, model=self.model.quantize())

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """Return the forward pass over token ids.

        Args:
            input_ids: Token ids [B, S].
            attention_mask: Booleans or integers [B, S], 0 at padding. None: all ones.
            decoder_input_ids: Token ids [B, T] that the decoder of an encoder-decoder has read.
            decoder_attention_mask: Booleans or integers [B, T], 0 at padding. None: all ones.
            token_type_ids: Integers [B, S], which sentence a token is of, where the model knows several.
            position_ids: Integers [B, S] or [1, S], in place of the family's own rule, which mostly numbers slots.
            output_hidden_states: Whether to return hidden states.
            output_attentions: Whether to return attention maps.

        Raises:
            InputError: Ids are outside the vocabulary, shapes do not fit, or sequences are longer than the positions.
        """
        encoder, decoder = self.model.config.encoder, self.model.config.decoder
        reads_twice = self.model.config.targets_from is not None
        if not reads_twice and (decoder_input_ids is None) == (encoder is not None and decoder is not None):
            raise InputError("give decoder_input_ids to an encoder-decoder, and to no other model")
        if decoder_input_ids is None and decoder_attention_mask is not None:
            raise InputError("decoder_attention_mask belongs to decoder_input_ids, which are not given")
        intermediate = flag("output_hidden_states", output_hidden_states)
        intermediate |= flag("output_attentions", output_attentions)
        ids, targets = checked_ids(self.model, "input_ids", input_ids, encoder is not None), None
        if decoder_input_ids is not None:
            targets = checked_ids(self.model, "decoder_input_ids", decoder_input_ids, source=False)
        if targets is not None and len(targets) != len(ids):
            raise InputError(f"there are {len(ids)} rows of input_ids, but {len(targets)} of decoder_input_ids")
        marks = {
            "inputs_mask": optional_mask("attention_mask", attention_mask, ids),
            "targets_mask": None
            if targets is None
            else optional_mask("decoder_attention_mask", decoder_attention_mask, targets),
            "position_ids": None if position_ids is None else positions(self.model, position_ids, ids),
            "token_types": None if token_type_ids is None else token_types(self.model, token_type_ids, ids),
        }
        check_ends(self.model, ids, marks["inputs_mask"])
        seen = forward(self.model, ids, targets, marks, return_intermediates=intermediate)
        encoder, decoder = seen.encoder, seen.decoder
        wanted = {"hidden_states": output_hidden_states, "attentions": output_attentions}
        asked = [name for name, is_asked in wanted.items() if is_asked]
        if targets is None and not reads_twice:
            trace = decoder if self.model.config.encoder is None else encoder
            return Output(seen.logits, **{name: getattr(trace, name) for name in asked})
        found = {f"encoder_{name}": getattr(encoder, name) for name in asked}
        found |= {f"decoder_{name}": getattr(decoder, name) for name in asked}
        return Output(seen.logits, cross_attentions=decoder.cross_attentions if output_attentions else None, **found)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        allowed_phrases: Any = None,
        allowed_regex: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Generated:
        """Generate as `jaxformer.generate` with the folder's settings.

        Where no length is set, there are 20 new tokens, but no more than the model's `context` has room for.

        Args:
            input_ids: Token ids [B, S], see `jaxformer.generate`.
            attention_mask: Booleans or integers [B, S], 0 at padding.
            allowed_phrases: Strings or lists of token ids, one of which has to be generated and nothing else; or a list
                of these with one for each input.
            allowed_regex: A regular expression that the generated text has to match, or a list with one for each input.
                Stop strings and regular expressions need the folder's tokenizer.
            **settings: Changes to the folder's settings, and other arguments of `jaxformer.generate`. None counts as
                given.

        Raises:
            InputError: As `jaxformer.generate` does.
        """
        if "inputs_mask" in settings:
            raise InputError("give the mask of the inputs as attention_mask")
        config = self.generation.replace(**{k: v for k, v in settings.items() if k not in BESIDE})
        unlimited = config.max_new_tokens is None and config.max_length is None
        if unlimited and self.context is not None and self.model.encoder is None and input_ids is not None:
            prompt = token_array("inputs", input_ids).shape[1]
            if prompt + DEFAULT_NEW_TOKENS > self.context:
                settings["max_length"] = self.context
        if config.stop_strings is not None and "token_texts" not in settings:
            settings["token_texts"] = self.token_texts
        if allowed_phrases is not None and allowed_regex is not None:
            raise InputError("give allowed_phrases or allowed_regex, not both")
        if allowed_phrases is not None:
            vocabulary = self.model.vocab_sizes[1]
            settings["allowed"] = allowed_automaton(plain(allowed_phrases), self.tokenizer, vocabulary, config.eos_ids)
        elif isinstance(allowed_regex, list | tuple):
            settings["allowed"] = [allow_regex(each, self.token_texts, config.eos_ids) for each in allowed_regex]
        elif isinstance(allowed_regex, str):
            settings["allowed"] = allow_regex(allowed_regex, self.token_texts, config.eos_ids)
        elif allowed_regex is not None:
            raise InputError(f"allowed_regex must be a string or several, not {shortened(repr(allowed_regex), 60)}")
        return generate(self.model, input_ids, self.generation, inputs_mask=attention_mask, **settings)

    def encode(
        self, texts: str | Sequence[str], *, special_tokens: bool = True, multiple_of: int = 1
    ) -> dict[str, np.ndarray]:
        """Return texts as a batch: `lm(**lm.encode(texts))`, `lm.generate(**lm.encode(texts))`.

        Shorter ones are padded on the left for decoders, on the right for encoders.

        Args:
            texts: One text, or several.
            special_tokens: Whether the tokenizer adds the tokens that begin and end a text. Texts of `chat` have them.
            multiple_of: S is a multiple of this, see `jaxformer.pad`: with few different lengths, few programs are
                compiled.

        Returns:
            "input_ids", int32 [B, S], and "attention_mask", booleans [B, S], False at padding.

        Raises:
            InputError: There is no tokenizer, or it cannot encode a text.
        """
        given, left = text_list(texts), self.model.encoder is None
        rows = token_rows(self.tokenizer, given, self.generation, begins=left, special_tokens=special_tokens)
        side = "left" if left else "right"
        ids, mask = pad(rows, max(self.generation.padding, 0), side=side, multiple_of=multiple_of)
        limit = self.model.max_length if left else self.model.max_source_length
        if limit is not None and max(map(len, rows)) <= limit:  # a multiple may be more than the model has positions
            ids, mask = (array[:, -limit:] if left else array[:, :limit] for array in (ids, mask))
        return {"input_ids": ids, "attention_mask": mask}

    @overload
    def decode(self, ids: Sequence[int]) -> str: ...
    @overload
    def decode(self, ids: Any) -> Any: ...
    def decode(self, ids: Any) -> str | list[str]:
        """Return the text of token ids [T], or the texts of [B, T], without special tokens.

        Raises:
            InputError: There is no tokenizer, or it cannot decode the tokens.
        """
        array = np.asarray(ids)
        rows = [text_of(self.tokenizer, row) for row in np.atleast_2d(array)]
        return rows[0] if array.ndim < 2 else rows

    @overload
    def complete(self, texts: str, *, special_tokens: bool = True, **settings: Any) -> str: ...
    @overload
    def complete(self, texts: Sequence[str], *, special_tokens: bool = True, **settings: Any) -> list[str]: ...
    def complete(self, texts: Any, *, special_tokens: bool = True, **settings: Any) -> str | list[str]:
        """Return what the model generates: a decoder continues texts, an encoder-decoder answers or translates them.

        Args:
            texts: One text, or several.
            special_tokens: As in `encode`.
            **settings: Arguments of `generate`.

        Returns:
            The new text, without the prompt; a list of them where a list was given.

        Raises:
            InputError: As `encode` and `generate` do, and where several sequences are asked for each text.
        """
        new = self._answers(self.encode(texts, special_tokens=special_tokens), settings)
        return new[0] if isinstance(texts, str) else new

    @overload
    def translate(
        self, texts: str, *, src_lang: str | None = None, tgt_lang: str | None = None, prefix: str = "", **settings: Any
    ) -> str: ...
    @overload
    def translate(
        self,
        texts: Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str = "",
        **settings: Any,
    ) -> list[str]: ...
    def translate(
        self, texts: Any, *, src_lang: str | None = None, tgt_lang: str | None = None, prefix: str = "", **settings: Any
    ) -> str | list[str]:
        """Return what an encoder-decoder answers to texts: their translations, summaries, whatever it was made for.

        Args:
            texts: One text, or several.
            src_lang: Language of the texts, by the name of its token, such as "en_XX" of mBART. None: the tokenizer's.
            tgt_lang: Language of the answers, by the name of its token. None: the folder's settings say.
            prefix: What stands before every text, such as "translate English to German: " of T5.
            **settings: Arguments of `generate`.

        Raises:
            InputError: The model is no encoder-decoder, its tokenizer does not know a language, and as `complete`.
        """
        if self.model.encoder is None or self.model.decoder is None:
            raise InputError("the model is no encoder-decoder: `complete` continues texts, `fill_mask` fills gaps")
        batch = self.encode([f"{prefix}{text}" for text in text_list(texts)])
        if src_lang is not None:
            batch["input_ids"] = languages.with_source(self.tokenizer, batch["input_ids"], src_lang)
        if tgt_lang is not None:
            settings["forced_bos_token_id"] = languages.token_of(self.tokenizer, tgt_lang)
        new = self._answers(batch, settings)
        return new[0] if isinstance(texts, str) else new

    def _answers(self, batch: dict[str, np.ndarray], settings: dict[str, Any]) -> list[str]:
        """Return the text that is generated after each row of a batch."""
        if settings.get("num_return_sequences", self.generation.num_return_sequences) != 1:
            raise InputError("one text is returned for each: for num_return_sequences call generate")
        found = self.generate(batch["input_ids"], batch["attention_mask"], **settings)
        start = batch["input_ids"].shape[1] if self.model.encoder is None else 1
        ends = self.generation.replace(**{k: v for k, v in settings.items() if k == "eos_token_id"})
        return [text_of(self.tokenizer, until_end(row, ends)) for row in found.sequences[:, start:]]

    @property
    def context(self) -> int | None:
        """How many tokens the model was made for, or has positions for; None: the folder does not say."""
        return self.model.max_length or self.settings.get("max_position_embeddings")

    @property
    def chat_template(self) -> str | None:
        """How the model wants conversations written, a Jinja template; None: it has no such wish."""
        return None if self.chat_format is None else self.chat_format.text

    @cached_property
    def chat_format(self) -> ChatTemplate | None:
        """The chat template with the special tokens that it may write; None: the checkpoint has none."""
        return chat_template(self.files)

    @overload
    def chat(self, messages: Messages) -> str: ...
    @overload
    def chat(self, messages: Sequence[Messages]) -> list[str]: ...
    def chat(self, messages: Messages | Sequence[Messages]) -> str | list[str]:
        """Return the text of a conversation, up to where the model's answer begins.

        Encode it without special tokens: they are written in it. The template is code of whoever made the checkpoint.
        It runs in a process of its own, for at most 10 seconds, and has 512 MB of memory (on Linux).

        Args:
            messages: A conversation [{"role": "user", "content": "Hello"}, ...], or a list of conversations, whose
                texts are returned as a list. One call for all of them is faster than a call for each.

        Raises:
            InputError: The folder has no template, or the template cannot be rendered with these messages.
        """
        if self.chat_format is None:
            raise InputError("the folder has no chat template: give the text as it is")
        if isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[0], list | tuple):
            return self.chat_format.render(cast(Sequence[Messages], messages))
        return self.chat_format.render([cast(Messages, messages)])[0]

    @cached_property
    def token_texts(self) -> list[str]:
        """What each token of the vocabulary says in the middle of a text; nothing, where the tokenizer has none.

        Raises InputError without a tokenizer.
        """
        if self.tokenizer is None:
            raise InputError("the folder has no tokenizer.json: what tokens say is not known")
        decode, size = partial(tokens.decode, self.tokenizer), self.tokenizer.get_vocab_size()
        vocabulary = self.model.vocab_sizes[1] or 0
        # Some tokenizers write the first token of a text otherwise than the others: let another one stand before it.
        before = next((token for token in range(size) if decode([token]).strip("\ufffd ")), 0)
        start = len(decode([before], skip_special_tokens=False))
        texts = [decode([before, token], skip_special_tokens=False)[start:] for token in range(min(size, vocabulary))]
        return texts + [""] * (vocabulary - len(texts))
