"""A folder of rows on a base and codecs by reference: it draws and speaks, and refuses what is not its
own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muomni import cli
from muomni.errors import CheckpointError, ConfigError, ContextError, DataError, TokenSpaceError
from muomni.infer import spans
from muomni.infer.engine import Engine
from muomni.infer.sampling import MediaSampling, SamplingConfig
from muomni.infer.spans import Compliance
from muomni.models import lora, rows, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.models.reference import NetworkReference
from muomni.models.rows import NOTE
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.space import TOKEN_SPACE, TokenSpace
from tiny_tokens import PICTURES, TEXTS, save_token_run


@pytest.fixture(scope="module")
def tokens_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_token_run(tmp_path_factory.mktemp("tokens") / "run")


@pytest.fixture
def copy(tokens_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokens_run, tmp_path / "copy"))


@pytest.mark.parametrize("where", ["", "rows", "rows/final"])
def test_it_draws_and_speaks_from_a_run_a_stage_or_a_final(tokens_run, where):
    engine = Engine.load(tokens_run / where)
    pictures = engine.draw(TEXTS)
    assert [(each.shape, each.dtype) for each in pictures] == [((16, 16, 3), np.uint8)] * 3
    spoken = engine.speak(TEXTS[:2])
    for wave, rate_hz in spoken:
        codec = engine.parts.writer.tokenizer.codecs["audio"]
        assert rate_hz == codec.sample_rate_hz
        assert len(wave) in {codec.samples(frames) for frames in range(1, 6)}, (
            "at most what it was trained to write"
        )
        assert np.isfinite(wave).all()


def test_equal_texts_give_equal_pictures_and_seeds_others(tokens_run):
    engine = Engine.load(tokens_run)
    one, two = engine.draw([TEXTS[0]]), engine.draw([TEXTS[1], TEXTS[0]])
    assert np.array_equal(one[0], two[1])
    hot = SamplingConfig(temperature=2.0)
    drawn = [engine.draw([TEXTS[0]], sampling=hot, seed=seed)[0] for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_it_draws_as_its_note_says_where_nobody_says_otherwise(copy):
    """Temperature and guidance of the stage are those of `draw` and `speak`; what is given goes before."""
    note = copy / "rows" / "final" / NOTE
    content = json.loads(note.read_text())
    how = {"image": {"temperature": 2.0, "guidance": 3.0, "seed": 5}, "audio": {"temperature": 1.5}}
    note.write_text(json.dumps({**content, "writing": how, "drop_prompts": 0.1}))
    engine, greedy = Engine.load(copy), SamplingConfig()
    assert engine.speaking() == MediaSampling(temperature=1.5)
    own = engine.draw(TEXTS[:1])[0]
    said = engine.draw(TEXTS[:1], sampling=MediaSampling(temperature=2.0, guidance=3.0), seed=5)[0]
    assert np.array_equal(own, said)
    assert not np.array_equal(own, engine.draw(TEXTS[:1], sampling=greedy)[0])
    paths = [copy / name for name in ("own.png", "unguided.png")]
    for path, options in zip(paths, ([], ["--guidance", "1"])):
        with pytest.raises(SystemExit) as left:
            cli.main(["draw", str(copy), TEXTS[0], "--out", str(path), "--seed", "5", *options])
        assert left.value.code == 0
    drawn = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(drawn[0], own)
    expected = engine.draw(TEXTS[:1], sampling=SamplingConfig(temperature=2.0), seed=5)[0]
    assert np.array_equal(drawn[1], expected)
    assert not np.array_equal(drawn[0], drawn[1])


def test_guidance_of_a_model_that_never_wrote_without_words_is_refused(tokens_run, tmp_path, capsys):
    with pytest.raises(ConfigError, match="never learned to write without words"):
        Engine.load(tokens_run).draw(TEXTS[:1], sampling=MediaSampling(guidance=2.0))
    options = {"--guidance": "0.5", "--repetition-penalty": "2"}
    for option, value in options.items():
        with pytest.raises(SystemExit) as left:
            cli.main(["speak", str(tokens_run), "one", "--out", str(tmp_path / "x.wav"), option, value])
        assert left.value.code == 2
        assert option in capsys.readouterr().err


def test_candidates_are_for_a_model_that_reads_what_it_writes(copy, tmp_path, capsys):
    how = MediaSampling(temperature=2.0, candidates=4)
    with pytest.raises(ConfigError, match="never learned to read what it writes \\(image\\)"):
        Engine.load(copy).draw(TEXTS[:1], sampling=how)
    note = copy / "rows" / "final" / NOTE
    note.write_text(json.dumps({**json.loads(note.read_text()), "reads": ["image"]}))
    engine = Engine.load(copy)
    drawn = [engine.draw(TEXTS[:2], sampling=how, seed=seed) for seed in (1, 1, 2)]
    assert all(np.array_equal(one, other) for one, other in zip(drawn[0], drawn[1]))
    assert not np.array_equal(drawn[0][0], drawn[2][0])
    with pytest.raises(ConfigError, match="audio"):
        engine.speak(TEXTS[:1], sampling=how)
    paths = [tmp_path / name for name in ("four.png", "alike.png")]
    told = [["--candidates", "4", "--temperature", "2", "--seed", "1"], ["--candidates", "4"]]
    codes = []
    for path, options in zip(paths, told):
        with pytest.raises(SystemExit) as left:
            cli.main(["draw", str(copy), TEXTS[0], "--out", str(path), *options])
        codes.append(left.value.code)
    assert codes == [0, 2]
    assert "--candidates are all alike without a temperature" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(paths[0])), engine.draw(TEXTS[:1], sampling=how, seed=1)[0])


@pytest.mark.parametrize("layout", ["delay", "parallel"])
def test_streams_side_by_side_are_written_too(tmp_path, layout):
    engine = Engine.load(save_token_run(tmp_path / "run", layout=layout))
    assert engine.draw(TEXTS[:1])[0].shape == (16, 16, 3)
    assert len(engine.speak(TEXTS[:1])[0][0]) > 0


def test_a_random_model_is_legal_only_because_it_is_held_to_the_grammar(tokens_run):
    writer = Engine.load(tokens_run).parts.writer
    (prompts,) = writer._batches("image", TEXTS)
    assert spans.raw_compliance(writer.model, prompts, writer.rules("image", prompts)) == Compliance(0, 3)


def test_what_it_can_not_do_is_refused(tokens_run, tmp_path):
    engine = Engine.load(tokens_run)
    with pytest.raises(DataError, match="expected words"):
        engine.draw(["  "])
    with pytest.raises(ContextError, match="do not fit ctx_len 128"):
        engine.draw(["zq" * 60])
    with pytest.raises(ContextError, match="leaves no room"):
        engine.speak(["zq" * 70])
    with pytest.raises(ConfigError, match="no voices"):
        engine.speak(["one"], voice="anna")
    with pytest.raises(CheckpointError, match="to draw"):
        Engine.load(tokens_run / "thinker").draw(["one"])
    lone = Engine.load(save_token_run(tmp_path / "run", media=("audio",)))
    with pytest.raises(TokenSpaceError, match="no image tokens"):
        lone.draw(["one"])
    assert len(lone.speak(["one"])) == 1


def _change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_another_base_is_refused(copy):
    torch.manual_seed(9)
    final = copy / "thinker" / "final"
    store.save(
        Decoder(DecoderConfig(vocab_size=297, width=32, layers=2, heads=2, ctx_len=128, tied=False)), final
    )
    with pytest.raises(CheckpointError, match="other weights"):
        Engine.load(copy / "rows").draw(["one"])


def test_another_tokenizer_is_refused(copy):
    Tokenizer.train(["quite other words", "of another corpus"] * 4, 290).save(copy / "thinker" / "final")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Engine.load(copy).draw(["one"])
    words = NetworkReference(name="thinker").describe(copy / "thinker" / "final", is_stage=True)["words"]
    note = json.loads((copy / "rows" / "final" / NOTE).read_text())
    _change(copy / "rows" / "final" / NOTE, base={**note["base"], "words": words})
    with pytest.raises(TokenSpaceError, match="text tokenizer: expected"):
        Engine.load(copy).draw(["one"])


def test_another_codec_is_refused_and_a_stale_digest_too(copy):
    final = copy / "rows" / "final"
    torch.manual_seed(9)
    store.save(ImageCodec(ImageCodecConfig(**PICTURES)), copy / "image_codec" / "final")
    with pytest.raises(CheckpointError, match="other weights"):
        Engine.load(copy).draw(["one"])
    told = NetworkReference(name="image_codec").describe(copy / "image_codec" / "final", is_stage=True)
    note = json.loads((final / NOTE).read_text())
    _change(final / NOTE, codecs={**note["codecs"], "image": told})  # as a forger would
    with pytest.raises(TokenSpaceError, match=r"image codec: .*digest: expected"):
        Engine.load(copy).draw(["one"])
    _change(final / NOTE, codecs={})
    with pytest.raises(CheckpointError, match="names no image codec"):
        Engine.load(copy).draw(["one"])


def test_another_token_space_is_refused(copy):
    final = copy / "rows" / "final"
    space = TokenSpace.load(final)
    TokenSpace(space.text_size, space.tokenizer, space.codecs, 72).save(final)
    with pytest.raises(TokenSpaceError, match="expected ids of token space"):
        Engine.load(copy).draw(["one"])
    content = json.loads((final / TOKEN_SPACE).read_text())
    content["special_tokens"]["img_start"] += 1
    (final / TOKEN_SPACE).write_text(json.dumps(content))
    with pytest.raises(TokenSpaceError, match="special token img_start"):
        Engine.load(copy).draw(["one"])


def test_an_adapter_beside_the_rows_is_merged(copy):
    pytest.importorskip("peft")
    final = copy / "rows" / "final"
    plain, _, _ = rows.open_folder(final)
    decoder = Decoder.open(copy / "thinker" / "final")
    lora.attach(decoder, lora.LoraSettings())
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    lora.save(decoder, final / "lora", base="thinker")
    tuned, _, _ = rows.open_folder(final)
    ids = torch.tensor([[20, 21, tuned.space.text_size]])
    with torch.no_grad():
        assert not torch.allclose(tuned(ids), plain(ids))
    assert torch.equal(tuned.new_head, plain.new_head)


def test_a_base_that_was_trained_whole_lies_within(copy):
    final = copy / "rows" / "final"
    shutil.copytree(copy / "thinker" / "final", final / "thinker")
    shutil.rmtree(copy / "thinker")
    assert Engine.load(copy / "rows").draw(["one"])[0].shape == (16, 16, 3)


def main(argv: list[str]) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    return int(left.value.code or 0)


def test_the_command_draws_a_png_or_one_a_line(tokens_run, tmp_path, capsys):
    assert main(["draw", str(tokens_run), "a red circle", "--out", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (16, 16)
    (tmp_path / "lines.txt").write_text("a red circle\none\n")
    assert (
        main(
            ["draw", str(tokens_run), "--batch", str(tmp_path / "lines.txt"), "--out", str(tmp_path / "many")]
        )
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["0000.png", "0001.png"]
    assert (tmp_path / "many" / "0000.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert main(["speak", str(tokens_run), "one", "--out", str(tmp_path / "one.wav")]) == 0
    assert (tmp_path / "one.wav").stat().st_size > 44
    assert capsys.readouterr().out == ""
    for wrong in (
        ["one"],
        ["--out", "x.png"],
        ["one", "--batch", "x.txt", "--out", "x"],
        [" ", "--out", str(tmp_path / "x.png")],
    ):
        assert main(["draw", str(tokens_run), *wrong]) == 2
