"""The vocabulary of a new Higgs Audio v2: bytes and merges learned from texts, then the marks, spelled as Llama 3 and
Higgs spell them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from muomni.errors import ConfigError
from muomni.tokens.bpe import NUM_BYTES, Tokenizer

MARKS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|recipient|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
)


def learn(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most so many ids, fewer where the texts give fewer merges; transformers opens what it saves.

    Raises  ConfigError where the ids do not hold the bytes and the marks.
    """
    least = NUM_BYTES + len(MARKS)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size: expected at least {least} ({NUM_BYTES} bytes + {len(MARKS)} marks), got {vocab_size}"
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(library, beside={"tokenizer_config.json": json.dumps(config, indent=2)})
