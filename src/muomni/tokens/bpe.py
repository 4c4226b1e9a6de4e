"""Text <-> ids by byte-level BPE: every string has ids, and no string can spell a special id."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from muomni import files
from muomni.errors import CheckpointError, ConfigError, DataError, TokenRangeError
from muomni.tokens.special_tokens import OWN, SPECIAL, MediaTokens, SpecialTokens

NUM_BYTES = 256
TEXTS_AT_ONCE = 1024
LETTERS_HELD = 1 << 19  # of words whose ids are remembered: some 10 MB
# Where ByteLevel cuts ASCII texts; each piece alone is cut nowhere. Source: GPT-2's pattern, as tokenizers
# has it.
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# What `chat.render` writes, for those who open the tokenizer with transformers.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


GENERATION = "generation_config.json"  # where transformers stops, beside a language model's weights
# Files that travel with a tokenizer of another maker, so that it opens elsewhere as it did before; the first
# too, since the library would write it in another way (merges as pairs).
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class Tokenizer:
    """A byte-level BPE: ours, with the special ids first, or Qwen's (any that speaks ChatML) or Llama 3's, whose
    ids stay what they are.

    Text never becomes a special id. Ours normalise nothing, so decode(encode(text)) == text.
    """

    def __init__(self, library: Library, beside: Mapping[str, str] | None = None) -> None:
        # Text that spells "<|end|>" stays text. The library does not store this switch, so it is set on every
        # way in.
        library.encode_special_tokens = True
        self._library = library
        self.special_tokens: SpecialTokens = _marks(library)
        self.beside = dict(beside or {})  # files of another maker's, by name
        # One more than the highest id: a vocabulary of others may have holes.
        self.num_ids: int = 1 + max(library.get_vocab(with_added_tokens=True).values())
        self.digest: str = files.sha256_json(json.loads(library.to_str()))
        self._ids: dict[str, list[int]] = {}  # of words
        self._held = 0  # their letters

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from texts; a corpus that is too small gives a smaller vocabulary and a warning.

        Raises  ConfigError if vocab_size does not hold the specials and the 256 bytes.
        """
        least = len(SPECIAL.names) + NUM_BYTES
        if vocab_size < least:
            raise ConfigError(
                f"vocab_size: expected at least {least} ({len(SPECIAL.names)} specials + {NUM_BYTES} bytes), got {vocab_size}"
            )
        library = Library(BPE())
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        library.decoder = ByteDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=SPECIAL.names,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(
            _in_lists(texts), trainer
        )  # a list at once: one text at a time, the counting waits for Python
        size = library.get_vocab_size()
        if size < vocab_size:
            warnings.warn(
                f"tokenizer: the corpus gave {size} tokens, asked were {vocab_size}; the vocabulary is {size}",
                stacklevel=2,
            )
        return cls(library)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open `folder/tokenizer.json`.

        Raises  CheckpointError if it is missing, broken, or has neither our marks nor ChatML's nor Llama 3's.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path}: expected a tokenizer, got {type(error).__name__}", hint="point at a finished stage"
            ) from error
        tokenizer = cls.from_json(text)
        if not tokenizer.is_own:
            tokenizer.beside = {
                name: (folder / name).read_bytes().decode() for name in BESIDE if (folder / name).is_file()
            }
        return tokenizer

    @classmethod
    def from_json(cls, text: str, beside: Mapping[str, str] | None = None) -> Tokenizer:
        """The tokenizer that `to_json` wrote."""
        library = _guarded(lambda: Library.from_str(text))
        return cls(library, beside)

    @property
    def is_own(self) -> bool:
        """Whether its vocabulary was made here."""
        return self.special_tokens is OWN

    def to_json(self) -> str:
        """The whole tokenizer as the library's JSON; another maker's as it came."""
        text: str = self.beside.get("tokenizer.json") or self._library.to_str(pretty=True)
        return text

    def save(self, folder: Path, ctx_len: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json (another maker's: the files that came with it);
        transformers opens the folder.

        There `eos_token` is what generation stops at, which of ours is the end of a turn; documents end at
        <|eos|> all the same.
        Takes   ctx_len: of the language model that lies in the folder. Ours then say too how long a sequence
                may be, and where transformers stops writing (generation_config.json): without that it would
                write on after each answer.
        """
        folder = Path(folder)
        for name, text in {"tokenizer.json": self.to_json(), **self.beside}.items():
            files.write_text(folder / name, text)
        if not self.is_own:
            return
        names = SPECIAL.names
        roles = {"bos": SPECIAL.bos, "eos": self.special_tokens.end, "unk": SPECIAL.unk, "pad": SPECIAL.pad}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": names[index] for role, index in roles.items()},
            "clean_up_tokenization_spaces": False,
            **({} if ctx_len is None else {"model_max_length": ctx_len}),
            "chat_template": CHAT_TEMPLATE,
        }
        files.write_json(folder / "tokenizer_config.json", config)
        if ctx_len is not None:
            ends = {
                "bos_token_id": SPECIAL.bos,
                "eos_token_id": list(self.special_tokens.stops),
                "pad_token_id": SPECIAL.pad,
            }
            files.write_json(folder / GENERATION, {**ends, "max_length": ctx_len})

    def __reduce__(self) -> tuple[Callable[[str, Mapping[str, str]], Tokenizer], tuple[str, dict[str, str]]]:
        return type(self).from_json, (
            self.to_json(),
            self.beside,
        )  # the text that stands in both is pickled once

    def __str__(self) -> str:
        return f"tokenizer of {self.vocab_size:,} tokens"

    @property
    def vocab_size(self) -> int:
        """V: the number of ids, specials included."""
        size: int = self._library.get_vocab_size()
        return size

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special id.

        Raises  DataError (bad_text) if the string holds a lone surrogate, which no UTF-8 can write.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; words of ASCII texts are looked up among those that were encoded before."""
        split = [WORD.findall(text) if self.is_own and text.isascii() else None for text in texts]
        known = self._ids  # another thread may begin a new one
        new = [*{word for words in split if words is not None for word in words}.difference(known)]
        whole = [text for text, words in zip(texts, split) if words is None]
        encoded = self.encode_whole([*new, *whole])
        known.update(zip(new, encoded))
        others = iter(encoded[len(new) :])
        ids = [
            next(others) if words is None else [one for word in words for one in known[word]]
            for words in split
        ]
        self._held += sum(map(len, new))
        if self._held > LETTERS_HELD:
            self._ids, self._held = {}, 0
        return ids

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in one call of the library and without what it knows already."""
        try:
            return [
                encoding.ids
                for encoding in self._library.encode_batch_fast(list(texts), add_special_tokens=False)
            ]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(
                "bad_text", "text: expected valid Unicode, got a lone surrogate", hint="clean the text"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; specials are left out, bytes that are no UTF-8 become U+FFFD.

        Raises  TokenRangeError on an id outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.num_ids:
            raise TokenRangeError(
                f"decode: expected ids in 0..{self.num_ids - 1}, got {min(ids)}..{max(ids)}"
            )
        text: str = self._library.decode(ids, skip_special_tokens=True)
        return text

    def normal(self, text: str) -> str:
        """The text that decode(encode(text)) gives: itself, but for vocabularies that normalise (Qwen's:
        NFC)."""
        rule = self._library.normalizer
        return text if rule is None else str(rule.normalize_str(text))

    def special(self, name: str) -> int:
        """The id of a special token by its spelling.

        Raises  CheckpointError where the vocabulary has none.
        """
        index: int | None = self._library.token_to_id(name)
        if index is None:
            raise CheckpointError(f"tokenizer: expected the special token {name}, found none")
        return index

    def token(self, index: int) -> str:
        """The stored spelling of one id (byte letters as GPT-2's), for reports."""
        name = self._library.id_to_token(index)
        if name is None:
            raise TokenRangeError(f"token: expected an id in 0..{self.vocab_size - 1}, got {index}")
        return str(name)


def _in_lists(texts: Iterable[str]) -> Iterator[list[str]]:
    left = iter(texts)
    while some := list(islice(left, TEXTS_AT_ONCE)):
        yield some


def _marks(library: Library) -> SpecialTokens:
    """Our marks where they stand first; ChatML's as Qwen3 has them, or Llama 3's, by name.

    Raises  CheckpointError where the vocabulary has none of these.
    """
    ids = [library.token_to_id(name) for name in SPECIAL.names]
    if ids == list(range(len(ids))):
        return OWN
    start, end, document = (
        library.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    )
    if start is None or end is None or document is None:
        if (llama := _llama_marks(library)) is not None:
            return llama
        raise CheckpointError(
            f"tokenizer: expected the special ids 0..{len(ids) - 1} first, got {ids}; nor has it ChatML's <|im_start|>, <|im_end|>",
            hint="train it with muomni, or give a Qwen3 checkpoint",
        )

    def plain(text: str) -> tuple[int, ...]:
        return tuple(library.encode(text, add_special_tokens=False).ids)

    added = library.get_added_tokens_decoder()
    first, pad, last = (
        library.token_to_id(f"<|{name}|>") for name in ("vision_start", "image_pad", "vision_end")
    )
    return SpecialTokens(
        opening=(),
        headers={role: (start, *plain(f"{role}\n")) for role in ("system", "user", "assistant")},
        end=end,
        after=plain("\n"),
        bos=document,  # a document begins where another ended
        eos=document,
        media={}
        if first is None or pad is None or last is None
        else {"image": MediaTokens(first, pad, last)},
        speech=None,
        words_from=0,
        words_to=min(added),
        spelled=frozenset(index for index, token in added.items() if not token.special),
    )


def _llama_marks(library: Library) -> SpecialTokens | None:
    """The marks of Llama 3, whose turns begin with a header and end with <|eot_id|>; None where they are not
    all there."""
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    begin, document, start, stop, end = (library.token_to_id(f"<|{name}|>") for name in names)
    if begin is None or document is None or start is None or stop is None or end is None:
        return None

    def plain(text: str) -> tuple[int, ...]:
        return tuple(library.encode(text, add_special_tokens=False).ids)

    added = library.get_added_tokens_decoder()
    return SpecialTokens(
        opening=(begin,),
        headers={
            role: (start, *plain(role), stop, *plain("\n\n")) for role in ("system", "user", "assistant")
        },
        end=end,
        after=(),
        bos=begin,
        eos=document,
        media={},
        speech=None,
        words_from=0,
        words_to=min(added),
        spelled=frozenset(index for index, token in added.items() if not token.special),
    )


def _guarded(open_library: Callable[[], Any]) -> Any:
    """Run the library's parser; its errors are bare `Exception`s, which no caller should have to catch."""
    try:
        return open_library()
    except Exception as error:
        raise CheckpointError(
            f"tokenizer.json: expected a tokenizer, got {error}",
            hint="the file is broken; train or copy it again",
        ) from error
