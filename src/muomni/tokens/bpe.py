"""Text <-> ids by byte-level BPE: every string has ids, and no string can spell a special id."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from muomni import files
from muomni.errors import CheckpointError, ConfigError, DataError, TokenRangeError

NUM_BYTES = 256
# What `chat.render` writes, for those who open the tokenizer with transformers.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Special:
    """The ids with a meaning of their own; the same in every vocabulary, always first."""

    pad: int = 0  # fills a row up to the batch's length; never in loss or attention
    bos: int = 1  # opens a conversation
    eos: int = 2  # closes a text document
    unk: int = 3  # reserved: bytes leave nothing unknown
    system: int = 4  # opens a turn that sets the rules
    user: int = 5  # opens a turn of the human
    assistant: int = 6  # opens a turn of the model: what follows is learned and generated
    end: int = 7  # closes a turn; generation stops here
    image: int = 8  # opens an image
    image_end: int = 9  # closes an image
    image_pad: int = 10  # a position that holds an image feature
    audio: int = 11  # opens a sound
    audio_end: int = 12  # closes a sound
    audio_pad: int = 13  # a position that holds a sound feature
    speech: int = 14  # the assistant speaks here

    @property
    def names(self) -> list[str]:
        """The spelling of each id, in order, as stored in tokenizer.json."""
        return [f"<|{field.name}|>" for field in fields(self)]


SPECIAL = Special()


class Tokenizer:
    """Byte-level BPE with the special ids first; nothing is normalised, so decode(encode(text)) == text."""

    special = SPECIAL

    def __init__(self, library: Library) -> None:
        found = [library.token_to_id(name) for name in self.special.names]
        if found != list(range(len(found))):
            raise CheckpointError(
                f"tokenizer: expected the special ids 0..{len(found) - 1} first, got {found}", hint="train it with muomni"
            )
        # Text that spells "<|end|>" stays text. The library does not store this switch, so it is set on every way in.
        library.encode_special_tokens = True
        self._library = library
        self.digest: str = files.sha256_json(json.loads(library.to_str()))

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
        library.train_from_iterator(texts, trainer)
        size = library.get_vocab_size()
        if size < vocab_size:
            warnings.warn(f"tokenizer: the corpus gave {size} tokens, asked were {vocab_size}; the vocabulary is {size}", stacklevel=2)
        return cls(library)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open `folder/tokenizer.json`.

        Raises  CheckpointError if it is missing, broken, or not one of ours.
        """
        path = Path(folder) / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: expected a tokenizer, got {type(error).__name__}", hint="point at a finished stage") from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote."""
        library = _guarded(lambda: Library.from_str(text))
        return cls(library)

    def to_json(self) -> str:
        """The whole tokenizer as the library's JSON."""
        text: str = self._library.to_str(pretty=True)
        return text

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; transformers opens the folder as it is."""
        folder = Path(folder)
        files.write_text(folder / "tokenizer.json", self.to_json())
        roles = {f"{role}_token": f"<|{role}|>" for role in ("bos", "eos", "unk", "pad")}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **roles,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        files.write_json(folder / "tokenizer_config.json", config)

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]:
        return type(self).from_json, (self.to_json(),)

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
        """`encode` of each text, in one call of the library."""
        try:
            return [list(encoding.ids) for encoding in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError("bad_text", "text: expected valid Unicode, got a lone surrogate", hint="clean the text") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; specials are left out, bytes that are no UTF-8 become U+FFFD.

        Raises  TokenRangeError on an id outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise TokenRangeError(f"decode: expected ids in 0..{self.vocab_size - 1}, got {min(ids)}..{max(ids)}")
        text: str = self._library.decode(ids, skip_special_tokens=True)
        return text

    def token(self, index: int) -> str:
        """The stored spelling of one id (byte letters as GPT-2's), for reports."""
        name = self._library.id_to_token(index)
        if name is None:
            raise TokenRangeError(f"token: expected an id in 0..{self.vocab_size - 1}, got {index}")
        return str(name)


def _guarded(open_library: Callable[[], Any]) -> Any:
    """Run the library's parser; its errors are bare `Exception`s, which no caller should have to catch."""
    try:
        return open_library()
    except Exception as error:
        raise CheckpointError(
            f"tokenizer.json: expected a tokenizer, got {error}", hint="the file is broken; train or copy it again"
        ) from error
