"""Byte-level BPE: any text comes back, and no text becomes a special id."""

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import CheckpointError, ConfigError, DataError, TokenRangeError, UserError
from muomni.tokens import bpe
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import SPECIAL

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "Grüße, 你好, привет",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with pytest.warns(UserWarning, match="the vocabulary is"):
        return Tokenizer.train(CORPUS, 5000)


def test_special_ids_are_fixed_and_first(tokenizer):
    assert [tokenizer.token(i) for i in range(15)] == SPECIAL.names
    assert (SPECIAL.pad, SPECIAL.bos, SPECIAL.eos, SPECIAL.unk) == (0, 1, 2, 3)
    assert (SPECIAL.system, SPECIAL.user, SPECIAL.assistant, SPECIAL.end) == (4, 5, 6, 7)
    assert (SPECIAL.image, SPECIAL.image_end, SPECIAL.image_pad) == (8, 9, 10)
    assert (SPECIAL.audio, SPECIAL.audio_end, SPECIAL.audio_pad, SPECIAL.speech) == (11, 12, 13, 14)


@given(st.text())
@settings(max_examples=200)
def test_any_text_comes_back_without_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= len(SPECIAL.names) for i in ids)


@pytest.mark.parametrize("name", SPECIAL.names)
def test_text_can_not_spell_a_special_id(tokenizer, name, tmp_path):
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        text = f"ignore this {name}{name} now"
        ids = one.encode(text)
        assert min(ids) >= len(SPECIAL.names)
        assert one.decode(ids) == text


def test_training_is_deterministic_and_saving_keeps_the_digest(tokenizer, tmp_path):
    with pytest.warns(UserWarning, match="corpus gave"):
        again = Tokenizer.train(CORPUS, 5000)
    assert again.digest == tokenizer.digest
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).digest == tokenizer.digest
    with pytest.warns(UserWarning, match="corpus gave"):
        other = Tokenizer.train([*CORPUS, "zebra zebra zebra"], 5000)
    assert other.digest != tokenizer.digest


def test_a_small_vocabulary_is_filled_exactly():
    assert Tokenizer.train(CORPUS, 300).vocab_size == 300
    with pytest.raises(ConfigError, match="271"):
        Tokenizer.train(CORPUS, 270)


@pytest.mark.parametrize("size", [5000, 32000])
def test_both_vocabularies_of_the_original_work(size):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(15000)]
    tokenizer = Tokenizer.train([" ".join(words)] * 2, size)
    assert tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode(words[17])) == words[17]


def test_transformers_opens_it_with_the_same_ids_and_template(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs("the quick Grüße").input_ids == tokenizer.encode("the quick Grüße")
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (
        0,
        1,
        7,
    )  # generation stops at the end of a turn
    turns = [{"role": "user", "content": "fox?"}]
    theirs_ids = theirs.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert theirs_ids == [
        SPECIAL.bos,
        SPECIAL.user,
        *tokenizer.encode("fox?"),
        SPECIAL.end,
        SPECIAL.assistant,
    ]


def test_bad_input_is_the_users_error(tokenizer, tmp_path):
    with pytest.raises(DataError) as caught:
        tokenizer.encode("half a pair \ud800")
    assert caught.value.reason == "bad_text"
    with pytest.raises(TokenRangeError):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(TokenRangeError):
        tokenizer.decode([-1])
    with pytest.raises(CheckpointError):
        Tokenizer.load(tmp_path)
    for content in (b"", b"{}", b"\xff\xfe", b"[1]", b'{"model": 3}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError):
            Tokenizer.load(tmp_path)


def test_a_foreign_tokenizer_is_refused():
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE

    with pytest.raises(CheckpointError, match="special ids"):
        Tokenizer.from_json(Library(BPE()).to_str())


ASCII = st.text(st.characters(max_codepoint=127))
NEAR_CUTS = st.text("aB1 '\t\n\r\x0b\x0c\x1c\x1f.,<|>slmtrevd")


@given(st.lists(st.one_of(st.text(), ASCII, NEAR_CUTS), max_size=8))
@settings(max_examples=500)
def test_words_that_are_looked_up_have_the_ids_that_the_library_gives(tokenizer, texts):
    """Its twin is the library's own way through whole texts."""
    assert tokenizer.encode_many(texts) == tokenizer.encode_whole(texts)


@given(st.one_of(ASCII, NEAR_CUTS))
@settings(max_examples=1000)
def test_ascii_texts_are_cut_where_the_library_cuts_them(tokenizer, text):
    def cut(part):
        return [
            part[start:stop] for _, (start, stop) in tokenizer._library.pre_tokenizer.pre_tokenize_str(part)
        ]

    words = bpe.WORD.findall(text)
    assert words == cut(text)
    assert all(cut(word) == [word] for word in words)


def test_the_words_that_are_remembered_are_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(bpe, "LETTERS_HELD", 40)
    texts = [f"word {number} of many" for number in range(50)]
    assert [tokenizer.encode(text) for text in texts] == tokenizer.encode_whole(texts)
    assert sum(map(len, tokenizer._ids)) <= 40
    assert tokenizer._held <= 40
