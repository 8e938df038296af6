"""A pretrained model as people are used to it: called with token ids and a mask, answering by the names they know."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast, overload

import jax
import numpy as np
import tokenizers

from jaxformer.config import ClassifierConfig, LearnedPositions, NonPadPositions, RelativePositions
from jaxformer.errors import InputError, shortened
from jaxformer.generation import Automaton, Generated, GenerationConfig, allow_phrases, allow_regex, generate
from jaxformer.generation.api import BESIDE
from jaxformer.generation.arrays import integer_array, mask_array, padded, token_array, until_end
from jaxformer.generation.config import DEFAULT_NEW_TOKENS, is_sequence, plain
from jaxformer.model import Transformer
from jaxformer.pretrained import tokens
from jaxformer.pretrained.chat import ChatTemplate, Messages, chat_template
from jaxformer.pretrained.forward import Output, forward
from jaxformer.pretrained.texts import text_list, text_of, token_rows


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Contents of a checkpoint folder.

    The model is a pytree of parameters like any other: train it, replace it.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer. None: there is no tokenizer.json.
        generation: Defaults of `generate`.
        settings: The folder's config.json.
        kept: Tensors that the model has no use for, by name; they are saved with it.
        files: Texts of the other files of the tokenizer, by name; they are saved with it.
    """

    model: Transformer
    tokenizer: tokenizers.Tokenizer | None
    generation: GenerationConfig
    settings: dict[str, Any]
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

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
        if (decoder_input_ids is None) == (encoder is not None and decoder is not None):
            raise InputError("give decoder_input_ids to an encoder-decoder, and to no other model")
        if decoder_input_ids is None and decoder_attention_mask is not None:
            raise InputError("decoder_attention_mask belongs to decoder_input_ids, which are not given")
        intermediate = _flag("output_hidden_states", output_hidden_states) or _flag(
            "output_attentions", output_attentions
        )
        ids = self._ids("input_ids", input_ids, encoder is not None)
        targets = None if decoder_input_ids is None else self._ids("decoder_input_ids", decoder_input_ids, source=False)
        if targets is not None and len(targets) != len(ids):
            raise InputError(f"there are {len(ids)} rows of input_ids, but {len(targets)} of decoder_input_ids")
        marks = {
            "inputs_mask": _mask("attention_mask", attention_mask, ids),
            "targets_mask": None
            if targets is None
            else _mask("decoder_attention_mask", decoder_attention_mask, targets),
            "position_ids": None if position_ids is None else self._positions(position_ids, ids),
            "token_types": None if token_type_ids is None else self._types(token_type_ids, ids),
        }
        seen = forward(self.model, ids, targets, marks, return_intermediates=intermediate)
        encoder, decoder = seen.encoder, seen.decoder
        wanted = {"hidden_states": output_hidden_states, "attentions": output_attentions}
        asked = [name for name, is_asked in wanted.items() if is_asked]
        if targets is None:
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
            settings["allowed"] = self._allowed_phrases(plain(allowed_phrases), config)
        elif isinstance(allowed_regex, list | tuple):
            settings["allowed"] = [allow_regex(each, self.token_texts, config.eos_ids) for each in allowed_regex]
        elif isinstance(allowed_regex, str):
            settings["allowed"] = allow_regex(allowed_regex, self.token_texts, config.eos_ids)
        elif allowed_regex is not None:
            raise InputError(f"allowed_regex must be a string or several, not {shortened(repr(allowed_regex), 60)}")
        return generate(self.model, input_ids, self.generation, inputs_mask=attention_mask, **settings)

    def encode(self, texts: str | Sequence[str], *, special_tokens: bool = True) -> dict[str, np.ndarray]:
        """Return texts as a batch: `lm(**lm.encode(texts))`, `lm.generate(**lm.encode(texts))`.

        Shorter ones are padded on the left for decoders, on the right for encoders.

        Args:
            texts: One text, or several.
            special_tokens: Whether the tokenizer adds the tokens that begin and end a text. Texts of `chat` have them.

        Returns:
            "input_ids", int32 [B, S], and "attention_mask", booleans [B, S], False at padding.

        Raises:
            InputError: There is no tokenizer, or it cannot encode a text.
        """
        given, left = text_list(texts), self.model.encoder is None
        rows = token_rows(self.tokenizer, given, self.generation, begins=left, special_tokens=special_tokens)
        ids, mask = padded([np.array(row, np.int32) for row in rows], max(self.generation.padding, 0), left=left)
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
        if settings.get("num_return_sequences", self.generation.num_return_sequences) != 1:
            raise InputError("complete returns one text for each: for num_return_sequences call generate")
        batch = self.encode(texts, special_tokens=special_tokens)
        found = self.generate(batch["input_ids"], batch["attention_mask"], **settings)
        start = batch["input_ids"].shape[1] if self.model.encoder is None else 1
        ends = self.generation.replace(**{k: v for k, v in settings.items() if k == "eos_token_id"})
        new = [text_of(self.tokenizer, until_end(row, ends)) for row in found.sequences[:, start:]]
        return new[0] if isinstance(texts, str) else new

    @property
    def labels(self) -> list[str]:
        """The labels of a classifier in the order of their numbers; LABEL_0 and so on where they have no names.

        Raises InputError for a model without a classifier.
        """
        head, names = self.model.config.head, self.settings.get("id2label") or {}
        if not isinstance(head, ClassifierConfig):
            raise InputError("the model has no classifier: train one with --task classify")
        named = {str(number): str(label) for number, label in names.items()}
        return [named.get(str(number), f"LABEL_{number}") for number in range(head.classes)]

    @overload
    def classify(self, texts: str) -> dict[str, float]: ...
    @overload
    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]: ...
    def classify(self, texts: Any) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each label, the most likely one first.

        Args:
            texts: One text, or several.

        Returns:
            Labels and their probabilities; a list of them where a list was given.

        Raises:
            InputError: The model has no classifier or no tokenizer, or a text is longer than its positions.
        """
        labels, batch = self.labels, self.encode(texts)
        rows = np.asarray(jax.nn.softmax(self(batch["input_ids"], batch["attention_mask"]).logits))  # [B, classes]
        found = [{labels[place]: float(row[place]) for place in np.argsort(-row, kind="stable")} for row in rows]
        return found[0] if isinstance(texts, str) else found

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

    def _allowed_phrases(self, phrases: Any, config: GenerationConfig) -> Automaton | list[Automaton]:
        """Return the phrases that may be generated, or for each input some of its own."""
        phrases = [phrases] if isinstance(phrases, str) else phrases
        if not is_sequence(phrases) or not phrases or not all(map(is_text, phrases)):
            wrong = shortened(repr(phrases), 60)
            raise InputError(f"allowed_phrases must be at least one phrase: strings or lists of token ids, not {wrong}")
        if all(not isinstance(each, str) and each and all(map(is_text, each)) for each in phrases):
            machines = [self._allowed_phrases(each, config) for each in phrases]
            return [machine for machine in machines if isinstance(machine, Automaton)]
        vocabulary = self.model.vocab_sizes[1]
        if vocabulary is None:
            raise InputError("an encoder-only model cannot generate: it has no decoder")
        if any(isinstance(phrase, str) for phrase in phrases) and self.tokenizer is None:
            raise InputError("the folder has no tokenizer.json to read phrases with: give them as token ids")
        ids = [self._phrase(phrase) for phrase in phrases]
        return allow_phrases(ids, vocabulary, config.eos_ids)

    def _phrase(self, phrase: Any) -> list[int]:
        """Return the token ids of a phrase."""
        if not isinstance(phrase, str):
            return list(phrase)
        assert self.tokenizer is not None, "asked before"
        return tokens.encode(self.tokenizer, [phrase], special_tokens=False)[0]

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

    def _types(self, types: Any, ids: np.ndarray) -> np.ndarray:
        """Return token types of the shape of the ids, checked against the kinds that the model knows."""
        array, known = integer_array("token_type_ids", types, "type"), self.model.config.main.embedding.types or 1
        if array.shape != ids.shape:
            raise InputError(f"token_type_ids has shape {array.shape}, but the token ids have {ids.shape}")
        outside = array[(array < 0) | (array >= known)]
        if outside.size:
            raise InputError(f"token_type_ids has {outside[0]}, outside the {known} types that the model knows")
        return array

    def _positions(self, position_ids: Any, ids: np.ndarray) -> np.ndarray:
        """Return positions [1|B, S] as the model counts them, checked against those that it has."""
        stack, array = self.model.config.main, integer_array("position_ids", position_ids, "position")
        if array.shape not in (ids.shape, (1, ids.shape[1])):
            raise InputError(f"position_ids has shape {array.shape}, but the token ids have {ids.shape}")
        if isinstance(stack.positions, RelativePositions):
            raise InputError(
                "the model has no position_ids: it sees distances between tokens, which follow their order"
            )
        if not isinstance(stack.positions, LearnedPositions):
            return array
        # RoBERTa's checkpoints count the reserved rows before the first position.
        first = stack.positions.offset if isinstance(stack.position_ids_from, NonPadPositions) else 0
        outside = array[(array < 0) | (array >= first + stack.positions.length)]
        if outside.size:
            known = first + stack.positions.length
            raise InputError(f"position_ids has {outside[0]}, outside the {known} positions of the model")
        return array - first

    def _ids(self, name: str, ids: Any, source: bool) -> np.ndarray:
        """Return token ids, checked against the vocabulary and the positions of the stack that reads them."""
        array = token_array(name, ids, self.model.vocab_sizes[0 if source else 1])
        limit = self.model.max_source_length if source else self.model.max_length
        if limit is not None and array.shape[1] > limit:
            raise InputError(f"{name} has {array.shape[1]} tokens, more than the {limit} positions of the model")
        return array


def _mask(name: str, mask: Any, ids: np.ndarray) -> np.ndarray | None:
    """Return a mask as booleans of the shape of the ids; None: all are real."""
    return None if mask is None else mask_array(name, mask, ids)


def _flag(name: str, value: Any) -> bool:
    """Return whether something is asked for. Raises InputError unless the value says yes or no."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {shortened(repr(value), 60)}")
    return bool(value)


def is_text(value: Any) -> bool:
    """Return whether a value can be a phrase, or several: text or a sequence."""
    return isinstance(value, str) or is_sequence(value)
