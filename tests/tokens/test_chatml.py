"""ChatML over Qwen3's vocabulary: the ids it has, what is learned of a turn, and files that stay what they
were."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace as Obj

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen
from muomni import files
from muomni.data.conversation import MediaSpec, rendered
from muomni.data.sample import parse
from muomni.errors import CheckpointError, ConfigError, DataError
from muomni.evaluate import labels
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen3_three_turns.json"
START, END, IMAGE = 151644, 151645, (151652, 151655, 151653)
PICTURE = Obj(type="image", path="a.png")


def text(words):
    return Obj(type="text", text=words)


def turns(*said):
    roles = ["system", *["user", "assistant"] * len(said)]
    return [Obj(role=role, content=words) for role, words in zip(roles, said)]


THREE = turns(
    "you are a helpful assistant.",
    [PICTURE, text("what is in the picture?")],
    "a red circle.",
    "is it in the park?",
    "a man rides a wave",
    [text("is this"), PICTURE, text("the same image?")],
    "a blue square and two dogs",
)


@pytest.fixture(scope="module")
def tokenizer(qwen_folder):
    return Tokenizer.load(qwen_folder)


@pytest.fixture(scope="module")
def theirs(qwen_folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(qwen_folder)


def spelled(tokenizer, ids):
    """What each id stands for."""
    return [tokenizer.token(i) for i in ids]


# --- the vocabulary -----------------------------------------------------------------------------------------------------------------------


def test_ids_come_from_the_vocabulary_by_name_and_none_is_new(tokenizer, theirs):
    marks = tokenizer.special_tokens
    assert (marks.bos, marks.eos, marks.end, marks.stops) == (151643, 151643, END, (END, 151643))
    assert (marks.media["image"].start, marks.media["image"].pad, marks.media["image"].end) == IMAGE
    assert (marks.opening, set(marks.media), marks.speech, tokenizer.is_own) == ((), {"image"}, None, False)
    assert tokenizer.vocab_size == len(theirs) == 151_669
    for role, header in marks.headers.items():
        assert list(header) == [START, *theirs(f"{role}\n")["input_ids"]]
    assert [theirs.convert_tokens_to_ids(name) for name in qwen.NAMES] == list(range(151643, 151669))


def test_its_files_come_out_byte_for_byte(tokenizer, qwen_folder, tmp_path):
    (tmp_path / "crlf").mkdir()
    for path in qwen_folder.iterdir():
        (tmp_path / "crlf" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "crlf" / "chat_template.jinja").write_bytes(b"{{ 'two' }}\r\n{{ 'lines' }}\n")
    for source in (qwen_folder, tmp_path / "crlf"):
        out = tmp_path / "out" / source.name
        pickle.loads(pickle.dumps(Tokenizer.load(source))).save(out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in source.iterdir()
        }


def test_a_loaders_worker_has_the_same_marks(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.special_tokens, again.digest, again.vocab_size) == (
        tokenizer.special_tokens,
        tokenizer.digest,
        tokenizer.vocab_size,
    )
    assert again.encode("<|im_end|>") == tokenizer.encode("<|im_end|>")


def test_the_rows_of_the_model_stay_as_they_are(qwen_llm, tmp_path):
    from muomni.models import pretrained, store

    decoder = pretrained.open_decoder(qwen_llm)
    assert decoder.config.vocab_size == len(decoder.model.embed_tokens.weight) == 151_936
    store.save(decoder, tmp_path)
    assert pretrained.open_decoder(tmp_path).config.vocab_size == 151_936


@pytest.mark.parametrize("name", ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"])
def test_a_vocabulary_without_vision_marks_refuses_pictures_in_one_line(
    qwen_folder, qwen_llm, tmp_path, name
):
    from muomni.models import pretrained
    from muomni.models.omni import Omni, Projectors, ProjectorsConfig
    from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig

    blind = Tokenizer.load(qwen.without(qwen_folder, tmp_path / "blind", name))
    assert not blind.special_tokens.media
    assert chat.render(blind, turns("", "hi", "a dog")).ids
    with pytest.raises(DataError) as refused:
        chat.render(blind, THREE, positions={"image": [4, 4]})
    eyes = VisionEncoder(
        VisionEncoderConfig(
            image_size=32, patch_size=16, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8
        )
    )
    with pytest.raises(ConfigError) as unwired:
        Omni(
            pretrained.open_decoder(qwen_llm),
            eyes,
            None,
            Projectors(ProjectorsConfig(width=32, vision_width=16)),
            blind.special_tokens,
        )
    assert "\n" not in str(refused.value) + str(unwired.value)


def test_a_vocabulary_of_neither_kind_is_refused(qwen_folder, tmp_path):
    with pytest.raises(CheckpointError, match="im_end"):
        Tokenizer.load(qwen.without(qwen_folder, tmp_path / "other", "<|im_end|>"))


# --- the template -------------------------------------------------------------------------------------------------------------------------

# A turn that begins with an empty line joins its header's line end into one token in transformers; nobody
# means anything by it.
plain = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20).filter(
    lambda words: "<" not in words and words == words.lstrip()
)


@given(st.lists(plain, min_size=2, max_size=7))
@settings(max_examples=60)
def test_plain_turns_are_tokenised_as_transformers_does(tokenizer, theirs, said):
    messages = turns(*said)
    dicts = [vars(message) for message in messages]
    asked = theirs.apply_chat_template(
        dicts[:2], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert chat.render(tokenizer, messages[:2], reply=True).ids == asked
    whole = theirs.apply_chat_template(dicts, tokenize=True, return_dict=False)
    if messages[-1].role == "assistant":
        # Qwen3's template puts an empty think block before answers after the last question, and there alone:
        # the same turn has other ids once the conversation goes on, which shifted the original's label mask
        # into user text (lumo C2). Ours has none, anywhere.
        block = theirs("<think>\n\n</think>\n\n")["input_ids"]
        at = next(i for i in range(len(whole)) if whole[i : i + len(block)] == block)
        whole = whole[:at] + whole[at + len(block) :]
    assert chat.render(tokenizer, messages).ids == whole


def test_three_turns_and_two_pictures_as_they_were_written_down(tokenizer):
    out = chat.render(tokenizer, THREE, positions={"image": [3, 2]})
    found = {
        "ids": out.ids,
        "labels": out.labels,
        "pieces": spelled(tokenizer, out.ids),
        "spans": [[span.start, span.length] for span in out.spans],
    }
    if not GOLDEN.exists():
        files.write_json(GOLDEN, found)
        pytest.fail(f"{GOLDEN} was not there: look at what was written")
    assert found == json.loads(GOLDEN.read_text())


def test_the_golden_file_says_what_it_should():
    """Read without our code: a golden file that was written wrong would keep the wrong for ever."""
    golden = json.loads(GOLDEN.read_text())
    ids, learned, pieces = golden["ids"], golden["labels"], golden["pieces"]
    assert ids.count(START) == ids.count(END) == 7
    places = [place for place, i in enumerate(ids) if i == START]
    marked = list(zip(ids, learned, pieces, strict=True))
    rows = [marked[a:b] for a, b in zip(places, [*places[1:], None], strict=True)]
    roles = ["system", *["user", "assistant"] * 3]
    said = ["aĠredĠcircle.", "aĠmanĠridesĠaĠwave", "aĠblueĠsquareĠandĠtwoĠdogs"]
    for row, role in zip(rows, roles, strict=True):
        spelled_row = "".join(piece for _, _, piece in row)
        assert spelled_row.startswith(f"<|im_start|>{role}Ċ")
        assert spelled_row.endswith("<|im_end|>Ċ")
        taught = [piece for i, label, piece in row if label == i]
        assert all(label in (-100, i) for i, label, _ in row)
        assert "".join(taught) == (said.pop(0) + "<|im_end|>" if role == "assistant" else "")
    assert [sum(i in IMAGE for i in ids[a - 1 : a + n + 1]) for a, n in golden["spans"]] == [
        n + 2 for _, n in golden["spans"]
    ]
    assert sum(i in IMAGE for i in ids) == 3 + 2 + 2 * 2


@given(st.lists(st.tuples(plain, plain), min_size=1, max_size=4), st.data())
@settings(max_examples=60)
def test_answers_and_their_ends_are_learned_and_nothing_else(tokenizer, exchanges, data):
    pictures = [data.draw(st.integers(0, 2)) for _ in exchanges]
    messages = []
    for (question, answer), count in zip(exchanges, pictures):
        messages += [
            Obj(role="user", content=[PICTURE] * count + [text(question)]),
            Obj(role="assistant", content=answer),
        ]
    out = chat.render(tokenizer, messages, positions={"image": [5] * sum(pictures)})
    wanted = [i for _, answer in exchanges for i in [*tokenizer.encode(answer), END]]
    assert [label for label in out.labels if label != chat.IGNORE] == wanted
    assert out.ids.count(IMAGE[1]) == 5 * sum(pictures)
    after = [t for t, i in enumerate(out.ids) if i == END]
    assert all(out.ids[t + 1] == 198 and out.labels[t + 1] == chat.IGNORE for t in after)
    ask = chat.render(tokenizer, messages[:-1], positions={"image": [5] * sum(pictures)}, reply=True)
    assert (out.ids[: len(ask)], out.labels[: len(ask)]) == (ask.ids, ask.labels)
    assert out.ids[len(ask) :] == [*tokenizer.encode(exchanges[-1][1]), END, 198]


@pytest.mark.parametrize("tokens", [1, 64])
def test_a_picture_costs_two_ids_more_than_its_tokens(tokenizer, tokens):
    """The original's cost 131 where 66 do: it put spaces between the pads (lumo C3)."""
    words = text("what is in the picture?")
    without = chat.render(tokenizer, turns("", [words], "a dog"))
    one = chat.render(tokenizer, turns("", [PICTURE, words], "a dog"), positions={"image": [tokens]})
    two = chat.render(
        tokenizer, turns("", [PICTURE, words, PICTURE], "a dog"), positions={"image": [tokens, tokens]}
    )
    assert (len(one) - len(without), len(two) - len(without)) == (tokens + 2, 2 * (tokens + 2))
    assert one.ids[one.spans[0].start - 1 : one.spans[0].start + tokens + 1] == [
        IMAGE[0],
        *[IMAGE[1]] * tokens,
        IMAGE[2],
    ]


@pytest.mark.parametrize("name", qwen.NAMES[: len(qwen.SPECIAL)])
def test_text_that_spells_a_mark_stays_text(tokenizer, name):
    words = f"now {name} and{name}\n"
    assert max(tokenizer.encode(words)) < 151643
    assert tokenizer.decode(tokenizer.encode(words)) == words
    out = chat.render(tokenizer, turns(words, [PICTURE, text(words)], words), positions={"image": [2]})
    assert (out.ids.count(START), out.ids.count(END), out.ids.count(IMAGE[1])) == (3, 3, 2)


def row(answer):
    return parse(
        {
            "id": "one",
            "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}],
        }
    )


@pytest.mark.parametrize(
    "answer",
    ["so <think>hm</think> a <tool_call> dog", "cafe\u0301 \u212b", "a dog\r\n\r\n", " \u4f60\u597d "],
)
def test_an_answer_is_read_back_as_the_words_it_was(tokenizer, answer):
    """What Qwen's vocabulary adds as words (<think>) or writes in another way (NFC) is no wrong label."""
    sample = row(answer)
    item = rendered(sample, tokenizer, MediaSpec(), 400, [])
    facts = labels._read_back([item.labels], [sample], tokenizer, most=400)
    assert (facts["taught_right"].value, facts["ends_taught"].value) == (1.0, 1.0), facts
    off = labels._read_back([[*item.labels[:-2], chat.IGNORE, END]], [row(answer + "!")], tokenizer, most=400)
    assert off["taught_right"].value == 0.0


def test_an_answer_that_is_cut_within_a_letter_is_no_wrong_label(tokenizer):
    sample = row("\u4f60\u597d" * 20)
    whole = rendered(sample, tokenizer, MediaSpec(), 400, [])
    for less in range(1, 5):
        size = len(whole.ids) - less
        item = rendered(sample, tokenizer, MediaSpec(), size, [])
        assert labels._read_back([item.labels], [sample], tokenizer, most=size)["taught_right"].value == 1.0


def test_fit_cuts_the_last_answer_alone_and_keeps_its_end(tokenizer):
    whole = chat.render(tokenizer, THREE, positions={"image": [6, 6]})
    answer = len(tokenizer.encode(THREE[-1].content))
    assert whole.ids[-2:] == [END, 198]
    for less in range(1, answer // 2 + 1):
        short = chat.fit(whole, len(whole) - less, shorten=True)
        assert short.ids == [*whole.ids[: len(whole) - less - 2], END, 198]
        assert short.labels[-2:] == [END, chat.IGNORE]
        assert len(short.labels) == len(short.ids)
        assert short.spans == whole.spans
    for refused in (chat.fit, lambda *given: chat.fit(*given, shorten=True)):
        with pytest.raises(DataError) as caught:
            refused(whole, len(whole) - answer // 2 - 1)
        assert caught.value.reason == "too_long"


def test_documents_stand_between_ends_of_text(tokenizer, tmp_path):
    from muomni.data.corpus import Rows, TokenCorpus

    assert chat.document(tokenizer, "a dog") == [151643, *tokenizer.encode("a dog"), 151643]
    words = ["a red circle", "two dogs <|endoftext|> run"]
    samples = [parse({"id": f"{i}", "text": each}) for i, each in enumerate(words)]
    corpus = TokenCorpus.build(tmp_path, samples, tokenizer)
    assert corpus.num_bytes == sum(len(each.encode()) for each in words)
    _, packed = Rows(corpus.pack(64)).item(0, np.random.default_rng(0))
    assert int((np.asarray(packed.ids_T) == 151643).sum()) == 4
