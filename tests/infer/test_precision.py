"""Answers in bf16 and fp16: the same on golden prompts, cached or not, and what is chosen, asked for or
emulated is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni import runtime
from muomni.cli import main
from muomni.data.conversation import MediaSpec, prepare, wave_to_mel
from muomni.data.sample import parse
from muomni.errors import ConfigError
from muomni.infer.engine import Engine
from muomni.infer.parts import Parts
from muomni.infer.transcribe import log_probs
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.language import NextToken, collate
from shared import once

GOLDEN = {
    "what colour is the star": "the star is blue",
    "where is the ring": "left of the heart",
    "how many": "seven",
    "is it red": "no it is a green cross",
}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TRIED: no CUDA device here")
FORMATS = ["fp32", "bf16", pytest.param("fp16", marks=[pytest.mark.gpu, NO_GPU])]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tiny Thinker knows the golden answers by heart."""

    def make(folder: Path) -> None:
        tokenizer = Tokenizer.train([*GOLDEN, *GOLDEN.values()] * 4, 290)
        torch.manual_seed(0)
        decoder = Decoder(
            DecoderConfig(
                vocab_size=tokenizer.vocab_size,
                width=32,
                layers=2,
                heads=2,
                ffn_width=64,
                ctx_len=64,
                dropout=0.0,
            )
        )
        turns = [
            [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            for ask, answer in GOLDEN.items()
        ]
        samples = [parse({"id": str(number), "messages": messages}) for number, messages in enumerate(turns)]
        batch = collate([prepare(sample, tokenizer, MediaSpec(), 64) for sample in samples])
        objective, optimizer = NextToken(decoder), torch.optim.AdamW(decoder.parameters(), lr=1e-2)
        for _ in range(80):
            term = objective(batch)["text"]
            (term.total / term.count).backward()
            optimizer.step()
            optimizer.zero_grad()
        store.save(decoder, folder / "thinker" / "final")
        tokenizer.save(folder / "thinker" / "final")

    return once(tmp_path_factory, "golden-answers", make)


def opened(folder: Path, precision: str) -> Engine:
    return Engine.load(folder, "cuda" if precision == "fp16" else "cpu", precision)


@pytest.mark.parametrize("precision", FORMATS)
def test_golden_prompts_have_their_answers_in_every_format(golden: Path, precision: str) -> None:
    engine = opened(golden, precision)
    assert {ask: engine.answer(ask).text for ask in GOLDEN} == GOLDEN
    assert [answer.text for answer in engine.answer_many(list(GOLDEN))] == list(GOLDEN.values())
    assert next(engine.parts.thinker.parameters()).dtype == DTYPES[precision]
    assert engine.parts.thinker.new_cache(1, 4).keys.dtype == DTYPES[precision]


@pytest.mark.parametrize("precision", FORMATS)
def test_the_cache_says_what_the_whole_sequence_says(golden: Path, precision: str) -> None:
    engine = opened(golden, precision)
    for ask in GOLDEN:
        ids = list(engine.prepare(ask).ids)
        cached = engine.answer(ask, max_new=16).token_ids
        whole: list[int] = []
        for _ in cached:
            whole.append(int(engine.logits([*ids, *whole])[0, -1].argmax()))
        assert whole == cached


def test_the_ears_compute_in_it(run: Path) -> None:
    wave = torch.sin(torch.arange(16000) / 9).numpy()
    encoder = Engine.load(run, "cpu").parts.hearing
    mels = [wave_to_mel(wave, encoder.config.mel, 0.1)]
    plain, half = log_probs(encoder, mels)[0], log_probs(encoder, mels, dtype=torch.bfloat16)[0]
    assert (half != plain).any()
    assert abs(half - plain).max() < 0.1
    assert Engine.load(run, "cpu", "bf16").transcribe([wave]) == Engine.load(run, "cpu", "fp32").transcribe(
        [wave]
    )


def test_the_talker_is_held_in_it_and_its_places_in_time_are_not(run: Path) -> None:
    engine = Engine.load(run, "cpu", "bf16")
    (wave, _), (plain, _) = (
        engine.speak(["the red circle"])[0],
        Engine.load(run, "cpu", "fp32").speak(["the red circle"])[0],
    )
    talker = engine.parts.voice.talker
    assert {p.dtype for p in talker.blocks.parameters()} == {torch.bfloat16}
    assert talker.pace.durations_V.dtype == talker.text_table.weight.dtype == torch.float32
    assert len(wave) > 0
    assert len(plain) > 0


def test_pictures_and_embeddings_are_seen_in_it(run: Path, media: Path) -> None:
    half, plain = (Engine.load(run, "cpu", precision) for precision in ("bf16", "fp32"))
    one, two = (each.embed(images=[media / "red.png"]) for each in (half, plain))
    assert one.dtype == two.dtype == torch.float32
    assert not torch.equal(one, two)
    assert float((one * two).sum()) > 0.99
    ready = half.prepare([{"role": "user", "content": [{"type": "image", "path": str(media / "red.png")}]}])
    assert half.read([ready])[0].dtype == torch.bfloat16
    assert half.answer("what", images=[media / "red.png"], max_new=4).token_ids


@pytest.mark.parametrize(
    ("has", "narrowest", "chosen"), [(True, 8, "bf16"), (True, 192, "fp32"), (False, 8, "fp32")]
)
def test_auto_is_what_training_would_take(
    run: Path, monkeypatch: pytest.MonkeyPatch, has: bool, narrowest: int, chosen: str
) -> None:
    monkeypatch.setattr(runtime, "has_bf16", lambda _: has)
    monkeypatch.setattr(runtime, "bf16_gains", lambda _: has)
    monkeypatch.setattr("muomni.models.reference.has_bf16", lambda _: has)
    monkeypatch.setattr(runtime, "BF16_MIN_WIDTH", narrowest)
    parts = Engine.load(run, "cpu").parts
    assert parts.number_format(32) == DTYPES[chosen] == runtime.choose_dtype("auto", 32, torch.device("cpu"))
    written = [*parts.thinker.parameters(), *parts.voice.talker.parameters()]
    assert {p.dtype for p in written} == {torch.float32}, "on a CPU single rows are no faster in bf16"
    monkeypatch.setattr(runtime, "choose_dtype", lambda precision, width, device: DTYPES["bf16"])
    on_gpu = Parts(run, torch.device("cpu"), "auto")
    on_gpu.device = torch.device("cuda")
    assert on_gpu.number_format(32, by_steps=True) == torch.bfloat16
    plain = Parts(run, torch.device("cpu"))
    assert next(plain.thinker.parameters()).dtype == plain.number_format(512) == torch.float32, (
        "who trains or copies takes what is stored"
    )


@pytest.mark.parametrize(
    ("precision", "has", "lines"),
    [
        ("bf16", True, ["note: computes in bf16 on cpu"]),
        ("fp32", True, ["note: computes in float32 on cpu"]),
        (
            "bf16",
            False,
            ["note: computes in bf16 on cpu", "note: bf16 is only emulated on this cpu, and slow: `auto` "],
        ),
        ("auto", False, []),
    ],
)
def test_it_is_told_once(
    golden: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    has: bool,
    lines: list[str],
) -> None:
    monkeypatch.setattr(runtime, "has_bf16", lambda _: has)
    monkeypatch.setattr(runtime, "bf16_gains", lambda _: has)
    monkeypatch.setattr("muomni.models.reference.has_bf16", lambda _: has)
    engine = Engine.load(golden, "cpu", precision)
    for _ in range(2):
        engine.answer("how many", max_new=2)
    told = [line for line in capsys.readouterr().err.splitlines() if "certificate" not in line]
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True))


@pytest.mark.parametrize("precision", ["int8", "float32", "fp16"])
def test_a_format_that_is_not_there_is_refused(golden: Path, precision: str) -> None:
    with pytest.raises(ConfigError, match="precision"):
        Engine.load(golden, "cpu", precision)


@pytest.mark.parametrize(
    ("command", "rest"),
    [("chat", ["--text", "how many"]), ("transcribe", ["{media}/low.wav"]), ("speak", ["red"])],
)
def test_commands_take_it(
    run: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, rest: list[str]
) -> None:
    asked = [each.format(media=media) for each in rest] + (
        ["--out", str(tmp_path / "said.wav")] if command == "speak" else []
    )
    with pytest.raises(SystemExit) as left:
        main([command, str(run), *asked, "--precision", "bf16"])
    assert not left.value.code
    assert "computes in bf16" in capsys.readouterr().err
