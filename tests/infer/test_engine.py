"""One Engine for every request: batched = single, streamed = whole, and errors that say what to do."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muomni.errors import CheckpointError, ConfigError, ContextError, DataError, ShapeError, TokenRangeError
from muomni.infer.answer import Writer
from muomni.infer.ctc import CharLM
from muomni.infer.engine import Engine
from muomni.infer.prompt import Request, longest_samples
from muomni.infer.sampling import SamplingConfig
from muomni.infer.transcribe import cut, log_probs
from muomni.media import audio
from muomni.tokens.alphabet import Alphabet
from muomni.tokens.bpe import Tokenizer


def requests(media: Path) -> list[Request]:
    """Every kind of request, of different lengths."""
    red, blue, high, low = (media / name for name in ("red.png", "blue.png", "high.wav", "low.wav"))
    turns = [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(red)}, {"type": "text", "text": "what colour"}],
        },
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "audio", "path": str(high)}]},
    ]
    return [
        Request("the red circle"),
        Request("is"),
        Request("what is left of it", images=[red]),
        Request(None, images=[red, blue], audios=[low, high]),
        Request("write", audios=[low]),
        Request(turns),
    ]


# --- answers ----------------------------------------------------------------------------------------------------------------------------


def test_many_at_once_answer_as_each_alone(engine: Engine, media: Path) -> None:
    asked = requests(media)
    together = engine.answer_many(asked, max_new=12)
    alone = [engine.answer(each.ask, images=each.images, audios=each.audios, max_new=12) for each in asked]
    assert together == alone
    assert len({tuple(each.token_ids) for each in together}) > 3  # else equality would prove little


def test_a_batch_equals_single_rows_where_the_longest_row_leaves_no_room(engine: Engine) -> None:
    long = "a " * 40
    together = engine.answer_many([long, "is"], max_new=60)
    assert together == [engine.answer(long, max_new=60), engine.answer("is", max_new=60)]
    assert len(together[0].token_ids) < 60  # cut by ctx_len
    assert together[0].finish == "length"


def test_the_media_matter(engine: Engine, media: Path) -> None:
    kinds = [
        {"images": [media / "red.png"]},
        {"images": [media / "blue.png"]},
        {"audios": [media / "low.wav"]},
        {},
    ]
    states = []
    for kind in kinds:
        x, _ = engine.read([engine.prepare(Request("what", **kind))])
        states.append(x.float().sum().item())
    assert len(set(states)) == 4


def test_a_picture_is_the_same_from_a_file_its_bytes_and_its_pixels(engine: Engine, media: Path) -> None:
    path = media / "red.png"
    picture = Image.open(path)
    asked = [
        Request("what", images=[each])
        for each in (path, str(path), path.read_bytes(), picture, np.array(picture))
    ]
    prompts = [engine.prepare(each) for each in asked]
    for each in prompts[1:]:
        assert each.ids == prompts[0].ids
        assert np.array_equal(each.media["image"][0], prompts[0].media["image"][0])


def test_media_without_words_get_the_recipe_s_question(engine: Engine, media: Path) -> None:
    def text(request: Request) -> str:
        return engine.tokenizer.decode(engine.prepare(request).ids)

    assert text(Request(images=[media / "red.png"])) == "what is it"
    assert text(Request(audios=[media / "low.wav"])) == "write"
    assert (
        text(Request(images=[media / "red.png"], audios=[media / "low.wav"])) == ""
    )  # the sound asks about the picture
    assert text(Request("so", images=[media / "red.png"])) == "so"


def test_a_last_answer_is_left_out_and_asked_again(engine: Engine) -> None:
    turns = [{"role": "user", "content": "is"}, {"role": "assistant", "content": "old"}]
    assert engine.prepare(turns).ids == engine.prepare("is").ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equal_seeds_give_equal_answers(engine: Engine, temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature)
    first, again, other = (
        engine.answer("the", sampling=sampling, seed=seed, max_new=16).token_ids for seed in (1, 1, 2)
    )
    assert first == again
    assert (first == other) == (temperature == 0)


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pieces_make_up_the_answer(engine: Engine, seed: int) -> None:
    how = {"sampling": SamplingConfig(temperature=1.0, seed=seed), "max_new": 40}
    pieces = list(engine.stream("the red", **how))
    answer = engine.answer("the red", **how)
    assert "".join(pieces) == answer.text == engine.tokenizer.decode(answer.token_ids)
    assert all(pieces)


def test_a_stop_string_ends_the_answer_before_itself(engine: Engine) -> None:
    whole = engine.answer("the red", max_new=40).text
    stop = whole[6:9]
    at = whole.index(stop)
    stopped = engine.answer("the red", max_new=40, stop=["never there", stop])
    assert (stopped.text, stopped.finish) == (whole[:at], "stop")
    assert engine.answer_many(["the red"], max_new=40, stop=[stop]) == [stopped]
    assert "".join(engine.stream("the red", max_new=40, stop=[stop])) == whole[:at]


# --- text that grows --------------------------------------------------------------------------------------------------------------------


TEXTS = ["naïve café", "語る 🙂👩‍👩‍👧 end", "\N{REPLACEMENT CHARACTER} stays", "ab\ncd", "e\u0301", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_no_character_is_cut(engine: Engine, text: str) -> None:
    writer = Writer(engine.tokenizer)
    pieces = [writer.push(token) for token in engine.tokenizer.encode(text)] + [writer.close("length")]
    assert "".join(pieces) == text == writer.text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such(engine: Engine) -> None:
    writer = Writer(engine.tokenizer)
    for token in engine.tokenizer.encode("a🙂")[:-1]:
        writer.push(token)
    assert writer.text == "a"
    writer.close("length")
    assert writer.text.startswith("a\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("text", "stops", "shown", "finish"),
    [
        ("one. two. three", [". t"], "one", "stop"),
        ("aaab", ["aab"], "a", "stop"),  # the stop begins within a begun stop
        ("abcabd", ["abd", "cab"], "ab", "stop"),  # the earlier one counts
        ("ab", ["abc"], "ab", "end"),  # only begun: it is text after all
        ("ab", [""], "ab", "end"),
    ],
)
def test_stop_strings_wait_until_they_are_certain(
    text: str, stops: list[str], shown: str, finish: str
) -> None:
    tokenizer = Tokenizer.train([], 271)  # bytes alone: every character is a token
    writer = Writer(tokenizer, stops)
    pieces = []
    for token in [*tokenizer.encode(text), tokenizer.special_tokens.end]:
        pieces.append(writer.push(token))
        if writer.finish:
            break
    assert ("".join(pieces), writer.text, writer.finish) == (shown, shown, finish)


# --- what is refused --------------------------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_context_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(ContextError, match="ctx_len 96"):
        engine.answer("a " * 200)
    with pytest.raises(ContextError, match="ctx_len 96"):
        engine.stream("a " * 200)


def test_too_long_a_sound_is_cut_in_a_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = engine.parts.media[0]
    assert spec is not None
    whole = (0.5 * np.sin(np.arange(16000 * 70) / 9)).astype(np.float32)
    audio.write(tmp_path / "long.wav", whole, 16000)
    own = engine.prepare(Request("what", audios=[whole[: longest_samples(spec)]]))
    assert spec.audio_tokens(len(own.media["audio"][0])) == spec.max_audio_tokens
    assert not capsys.readouterr().err, "a sound that just fits is left alone"
    turn = [
        {
            "role": "user",
            "content": [
                {"type": "audio", "path": str(tmp_path / "long.wav")},
                {"type": "text", "text": "what"},
            ],
        }
    ]
    late = [
        {"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "long.wav"), "start": 66.0}]}
    ]
    for asked in (
        Request("what", audios=[whole]),
        Request("what", audios=[tmp_path / "long.wav"]),
        Request(turn),
        Request(late),
    ):
        cut = engine.prepare(asked)
        told = capsys.readouterr().err.splitlines()
        assert len(cut.media["audio"][0]) == len(own.media["audio"][0])
        assert len(told) == 1
        assert "cut to its first 1.73 s: in a chat it may fill 24 positions" in told[0]
    assert engine.prepare(Request("what", audios=[whole])).ids == own.ids
    assert engine.answer("what", audios=[whole], max_new=4).token_ids
    for whole_alone in (Request("what", audios=[whole[: 16000 * 3]]), Request(turn)):
        with pytest.raises(DataError, match=r"at most (24|60)"):
            engine.prepare(whole_alone, cut=False)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(""), DataError),
        (Request([]), DataError),
        (Request([{"role": "assistant", "content": "only me"}]), DataError),
        (Request([{"role": "robot", "content": "x"}]), DataError),
        (Request("a", images=["nowhere.png"]), DataError),
        (Request("a", images=[b"no picture"]), DataError),
        (Request("a", images=[np.zeros((4, 4), np.uint8)]), ShapeError),
        (Request("a", audios=[np.zeros((2, 100), np.float32)]), ShapeError),
        (Request("a", audios=[np.full(1600, np.nan, np.float32)]), DataError),
        (Request("a", audios=[np.zeros(0, np.float32)]), DataError),
    ],
)
def test_hostile_requests(engine: Engine, request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error):
        engine.prepare(request_)


def test_logits_are_the_thinkers(engine: Engine) -> None:
    ids = [[1, 5, 40, 41], [1, 5, 42, 43]]
    logits = engine.logits(ids)
    assert logits.shape == (2, 4, engine.tokenizer.vocab_size)
    assert torch.allclose(engine.logits(ids[1])[0], logits[1], atol=1e-5)
    with pytest.raises(TokenRangeError):
        engine.logits([engine.tokenizer.vocab_size])


# --- sound and sight --------------------------------------------------------------------------------------------------------------------


def test_transcripts_do_not_depend_on_company(engine: Engine, media: Path) -> None:
    waves = [
        np.random.default_rng(seed).standard_normal(4000 * (seed + 1)).astype(np.float32) * 0.1
        for seed in range(4)
    ]
    together = engine.transcribe([*waves, media / "low.wav"])
    assert together == [engine.transcribe([each])[0] for each in (*waves, media / "low.wav")]
    assert any(together)
    assert engine.transcribe([]) == []


def test_chunks_of_a_long_sound_join_without_gap_or_overlap(engine: Engine) -> None:
    encoder = engine.parts.hearing
    mel = np.random.default_rng(0).standard_normal((601, 128)).astype(np.float32)
    for frames in (1, 7, 150, 200, 201, 399, 600, 601):
        (found,) = log_probs(encoder, [mel[:frames]], chunk_s=2.0, overlap_s=0.5)
        assert len(found) == encoder.length(frames)
    whole, (chunked,) = log_probs(encoder, [mel])[0], log_probs(encoder, [mel], chunk_s=4.0, overlap_s=1.0)
    assert whole.shape == chunked.shape
    # An untrained encoder has no firm opinions, but on the whole those of the chunks must be the whole's, at
    # the same times.
    assert np.corrcoef(whole.ravel(), chunked.ravel())[0, 1] > 0.9


def test_cut_covers_everything() -> None:
    for frames in range(1, 60):
        pieces = cut(frames, 20, 4)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == frames
        assert all(after[0] == before[1] - 4 for before, after in pairwise(pieces))
        assert all(0 < end - start <= 20 for start, end in pieces)


def test_the_character_model_is_listened_to(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "hearing", tmp_path / "hearing")
    wave = np.random.default_rng(1).standard_normal(16000).astype(np.float32) * 0.1
    assert set(Engine.load(tmp_path).transcribe([wave])[0]) != {"q"}
    alphabet = Alphabet()
    CharLM.train([alphabet.encode("q" * 40)] * 50, size=len(alphabet)).save(
        tmp_path / "hearing" / "final" / "char_lm.json"
    )
    engine = Engine.load(tmp_path)
    with_model, without = engine.transcribe([wave])[0], engine.transcribe([wave], beam=False)[0]
    assert with_model != without
    assert "q" in with_model


def test_speech_is_a_wave_for_every_text(engine: Engine) -> None:
    said = engine.speak(["red", "is"])
    assert [rate for _, rate in said] == [16000, 16000]
    assert all(len(wave) and np.isfinite(wave).all() and np.abs(wave).max() <= 1 for wave, _ in said)
    with pytest.raises(DataError):
        engine.speak([" "])


def test_pictures_and_texts_share_a_space(engine: Engine, media: Path) -> None:
    pictures = engine.embed(images=[media / "red.png", media / "blue.png"])
    texts = engine.embed(texts=["red", "the blue square"])
    assert pictures.shape == texts.shape == (2, 8)
    for each in (pictures, texts):
        assert torch.allclose(each.norm(dim=1), torch.ones(2), atol=1e-5)
        assert not torch.allclose(each[0], each[1])
    assert torch.allclose(engine.embed(texts=["red"])[0], texts[0], atol=1e-6)  # padding has no say
    with pytest.raises(ConfigError):
        engine.embed()


# --- folders ----------------------------------------------------------------------------------------------------------------------------


def test_run_stage_and_final_folder_open_alike(run: Path) -> None:
    answers = {
        Engine.load(folder).answer("the red", max_new=8).text
        for folder in (run, run / "omni", run / "omni" / "final")
    }
    assert len(answers) == 1
    assert Engine.load(run / "thinker" / "final").answer("the", max_new=4).token_ids
    assert Engine.load(run / "hearing").transcribe([np.ones(16000, np.float32) * 0.1]) is not None
    assert Engine.load(run / "talker" / "final").speak(["red"])


@pytest.mark.parametrize(
    ("folder", "ask", "names"),
    [
        ("thinker", lambda engine: engine.answer("a", images=[np.zeros((8, 8, 3), np.uint8)]), "omni"),
        ("thinker", lambda engine: engine.transcribe([]), "hearing"),
        ("omni", lambda engine: engine.answer("a", speak=True), "talker"),
        ("hearing", lambda engine: engine.answer("a"), "omni or thinker"),
        ("codec", lambda engine: engine.embed(texts=["a"]), "vision"),
    ],
)
def test_a_missing_ability_names_the_stage_to_run(run: Path, folder: str, ask: object, names: str) -> None:
    engine = Engine.load(run / folder)
    with pytest.raises(CheckpointError, match=names):
        ask(engine)  # type: ignore[operator]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, expected in (
        ("nowhere", "found nothing"),
        ("file", "found a file"),
        ("empty", "no finished stage"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            Engine.load(tmp_path / name)


def test_torn_parts_are_named_when_needed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    omni = tmp_path / "run" / "omni" / "final"
    (omni / "omni.json").write_text("{torn")
    with pytest.raises(CheckpointError, match=r"omni\.json"):
        Engine.load(tmp_path / "run").answer("a")
    weights = tmp_path / "run" / "hearing" / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="torn"):
        Engine.load(tmp_path / "run").transcribe([np.ones(16000, np.float32)])
