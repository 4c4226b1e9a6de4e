"""Commands on a trained folder: chat, transcribe, speak, draw, trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.commands import console
from muomni.errors import ConfigError, DataError

if TYPE_CHECKING:
    from muomni.infer.hops import Hop
    from muomni.infer.sampling import SamplingConfig

ROWS_AT_ONCE = 256
FILES_AT_ONCE = 32
TEXTS_AT_ONCE = 16

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder, a stage's, or a final/")]
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on standard output")]
Temperature = Annotated[float, typer.Option(help="0: always the likeliest")]
TopK = Annotated[int, typer.Option(help="draw among the k likeliest; 0: among all")]
TopP = Annotated[float, typer.Option(help="draw among the fewest that hold this share of the probability")]
Penalty = Annotated[float, typer.Option(help="above 1: what stood before becomes less likely")]
Seed = Annotated[int, typer.Option(help="of the drawing")]
OWN = "; left out: as the model was trained to, else "
OwnTemperature = Annotated[float | None, typer.Option(help=f"0: always the likeliest{OWN}0")]
OwnTopK = Annotated[int | None, typer.Option(help=f"draw among the k likeliest; 0: among all{OWN}0")]
OwnTopP = Annotated[
    float | None,
    typer.Option(help=f"draw among the fewest that hold this share of the probability{OWN}1"),
]
Guidance = Annotated[
    float | None,
    typer.Option(help=f"above 1: further from what a token model would make without words{OWN}1"),
]
Candidates = Annotated[
    int | None,
    typer.Option(help=f"how many a token model writes; it keeps the one that it reads most surely{OWN}1"),
]
Precision = Annotated[
    str, typer.Option(help="number format: auto (the fastest that is sound here), fp32, bf16 or fp16")
]


def chat(
    folder: Folder,
    text: Annotated[str | None, typer.Option(help="what to ask")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="F", help="a picture; may be given several times")
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option(metavar="F", help="a sound; may be given several times")
    ] = None,
    speak: Annotated[
        Path | None, typer.Option(metavar="OUT.wav", help="say the answer aloud; with --batch a folder")
    ] = None,
    as_json: Json = False,
    batch: Annotated[
        Path | None,
        typer.Option(metavar="IN.jsonl", help="answer many samples, the last turn of each is the user's"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="where the answers to --batch go")
    ] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    max_new: Annotated[int, typer.Option(help="most tokens of an answer")] = 128,
    seed: Seed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="end the answer before this text; may be given several times")
    ] = None,
    precision: Precision = "auto",
) -> None:
    """Answer a question about text, pictures and sounds; an interactive chat without a question."""
    if (batch is None) != (out is None):
        raise ConfigError("chat: --batch and --out go together", hint="--batch IN.jsonl --out OUT.jsonl")
    if batch is not None and (text is not None or image or audio):
        raise ConfigError(
            "chat: --batch brings its own questions, so --text, --image and --audio can't be given"
        )
    from muomni.commands.conversation import Chat
    from muomni.infer.engine import Engine

    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = _sampling(None, {**chosen, "repetition_penalty": repetition_penalty})
    engine = Engine.load(folder, precision=precision)
    talk = Chat(
        engine, {"sampling": sampling, "max_new": max_new, "stop": stop or []}, as_json=as_json, speak=speak
    )
    if batch is not None and out is not None:
        talk.answer_file(batch, out)
    elif text is not None or image or audio:
        talk.answer_once(text, image or [], audio or [])
    else:
        talk.interactive()


def transcribe(
    folder: Folder,
    wavs: Annotated[list[Path], typer.Argument(metavar="WAV...", help="sound files")],
    as_json: Json = False,
    greedy: Annotated[bool, typer.Option("--greedy", help="without the character model's advice")] = False,
    precision: Precision = "auto",
) -> None:
    """Speech to text."""
    from muomni.infer import prompt
    from muomni.infer.engine import LONGEST_S, Engine

    engine = Engine.load(folder, precision=precision)
    rate_hz = engine.parts.hearing.config.mel.rate_hz
    rows: list[dict[str, str]] = []
    bad = 0
    for first in range(0, len(wavs), FILES_AT_ONCE):
        some = wavs[first : first + FILES_AT_ONCE]
        waves, refused = console.each(some, lambda path: prompt.read_sound(path, rate_hz, max_s=LONGEST_S))
        bad += refused
        transcripts = zip(waves, engine.transcribe(list(waves.values()), beam=not greedy))
        rows += [{"path": str(some[place]), "text": text} for place, text in transcripts]
        if len(wavs) > FILES_AT_ONCE:
            console.note(f"{min(first + FILES_AT_ONCE, len(wavs))} of {len(wavs)} files")
    if as_json:
        console.result_json(rows)
    else:
        for row in rows:
            console.result(row["text"] if len(wavs) == 1 else f"{row['path']}\t{row['text']}")
    if bad:
        raise typer.Exit(DataError.exit_code)


def speak(
    folder: Folder,
    text: Annotated[str | None, typer.Argument(help="what to say")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="F.wav|FOLDER", help="where the speech goes; a folder with --batch")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(metavar="F.txt", help="say each line: 0000.wav, 0001.wav, ...")
    ] = None,
    voice: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of a Talker of several voices; a wrong name lists the voices"),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]F.wav",
            help="of stage voice: a sound of the voice to speak in; several, with the names that stand in brackets "
            "in the text",
        ),
    ] = None,
    transcript: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="what the reference says, one for each: it then stands in a turn of its own"
        ),
    ] = None,
    temperature: OwnTemperature = None,
    top_k: OwnTopK = None,
    top_p: OwnTopP = None,
    guidance: Guidance = None,
    candidates: Candidates = None,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    precision: Precision = "auto",
) -> None:
    """Text to speech."""
    texts, paths = _said("speak", "wav", text, batch, out)
    from muomni.infer import voice as voices
    from muomni.infer.engine import Engine
    from muomni.media import audio

    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if voices.find(folder) is not None:
        idle = {
            "--voice": voice,
            "--precision": precision != "auto",
            "--guidance": guidance is not None,
            "--candidates": candidates is not None,
            "--repetition-penalty": repetition_penalty != 1,
        }
        if named := [option for option, value in idle.items() if value]:
            raise ConfigError(
                f"speak: {named[0]} has no effect on a folder of stage voice", hint="leave it out"
            )
        _clone(folder, texts, paths, reference or [], transcript or [], _sampling(None, chosen))
        return
    if reference or transcript:
        raise ConfigError(
            f"speak: --reference and --transcript need a folder of stage voice, and {folder} is none",
            hint="train one: muomni voice-train",
        )
    engine = Engine.load(folder, precision=precision)
    chosen |= {"guidance": guidance, "candidates": candidates, "repetition_penalty": repetition_penalty}
    sampling = _sampling(engine.speaking(), chosen)
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        speeches = engine.speak(texts[first : first + TEXTS_AT_ONCE], voice=voice, sampling=sampling)
        for path, (wave, rate_hz) in zip(paths[first:], speeches, strict=False):
            audio.write(path, wave, rate_hz)
        console.note(f"{min(first + TEXTS_AT_ONCE, len(texts))} of {len(texts)} spoken -> {out}")


def _clone(
    folder: Path,
    texts: list[str],
    paths: list[Path],
    references: list[str],
    transcripts: list[str],
    sampling: SamplingConfig,
) -> None:
    """Each text in the voices of references; a line says where the guard had to end one."""
    import torch

    from muomni.infer import voice as voices
    from muomni.media import audio

    if len(transcripts) > len(references):
        raise ConfigError("speak: --transcript has an effect with --reference", hint="one for each")
    heard = []
    for place, named in enumerate(references):
        name, _, file = named.rpartition("=") if not Path(named).is_file() else ("", "", named)
        if not Path(file).is_file():
            raise DataError("missing", f"{file}: expected a sound, found nothing there")
        said_there = transcripts[place] if place < len(transcripts) else None
        heard.append(voices.Reference(file, said_there, name or None))
    asked = [voices.dialogue(text, heard) for text in texts]
    cloner = voices.open_cloner(folder, "cuda" if torch.cuda.is_available() else "cpu")
    for text, sample, path in zip(texts, asked, paths, strict=True):
        said = cloner.say(cloner.row(sample), sampling)
        wave = cloner.wave(said.codes_KF)
        if not len(wave):
            raise DataError(
                "empty", f"{text!r:.60}: the voice ended before its first frame", hint="train longer"
            )
        audio.write(path, wave, cloner.rate_hz)
        end = "" if said.is_ended else ", cut off: it did not end by itself"
        console.note(f"{len(wave) / cloner.rate_hz:.2f} s -> {path}{end}")


def draw(
    folder: Folder,
    text: Annotated[str | None, typer.Argument(help="what to draw")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="F.png|FOLDER", help="where the picture goes; a folder with --batch"),
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(metavar="F.txt", help="draw each line: 0000.png, 0001.png, ...")
    ] = None,
    temperature: OwnTemperature = None,
    top_k: OwnTopK = None,
    top_p: OwnTopP = None,
    guidance: Guidance = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    precision: Precision = "auto",
) -> None:
    """Text to image, by a token model."""
    texts, paths = _said("draw", "png", text, batch, out)
    from muomni.infer.engine import Engine
    from muomni.media import image

    engine = Engine.load(folder, precision=precision)
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen |= {"guidance": guidance, "candidates": candidates, "seed": seed}
    sampling = _sampling(engine.parts.writer.own("image"), chosen)
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        pictures = engine.draw(texts[first : first + TEXTS_AT_ONCE], sampling=sampling)
        for path, pixels in zip(paths[first:], pictures, strict=False):
            image.write(path, pixels)
        console.note(f"{min(first + TEXTS_AT_ONCE, len(texts))} of {len(texts)} drawn -> {out}")


def trace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|RECIPE", help="a run's folder, a stage's, or a final/; with --training a recipe"
        ),
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE] [STAGE.KEY=VALUE...]", help="with --training: which stage, by which settings"
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="what to ask")] = None,
    image: Annotated[Path | None, typer.Option(metavar="F", help="a picture")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="F", help="a sound")] = None,
    speak: Annotated[bool, typer.Option("--speak", help="also say the text aloud")] = False,
    training: Annotated[
        bool, typer.Option("--training", help="walk through one batch of a stage's training, up to its loss")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="with --training: the run folder, read for finished stages"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Trace one request, or one batch of training: each step of the forward pass with its shape and meaning."""
    if training:
        title, hops = _of_training(source, args or [], out, has_request=any((text, image, audio, speak)))
    else:
        if args or out is not None:
            raise ConfigError(
                "trace: a stage, its settings and --out go with --training",
                hint="muomni trace RECIPE STAGE --training",
            )
        from muomni.infer.engine import Engine
        from muomni.infer.trace import trace as walk

        title, hops = (
            f"trace of {source}",
            walk(Engine.load(source), text=text, image=image, audio=audio, speak=speak),
        )
    if as_json:
        console.result_json([hop.to_json() for hop in hops])
    else:
        console.table(
            title, ["hop", "shape", "meaning"], [[hop.name, str(hop.shape), hop.meaning] for hop in hops]
        )


def _of_training(
    source: str, args: list[str], out: Path | None, *, has_request: bool
) -> tuple[str, list[Hop]]:
    stages, overrides = [arg for arg in args if "=" not in arg], [arg for arg in args if "=" in arg]
    if len(stages) != 1:
        raise ConfigError(
            f"trace --training: expected one stage, got {', '.join(stages) or 'none'}",
            hint="muomni trace RECIPE STAGE --training",
        )
    if has_request:
        raise ConfigError(
            "trace --training: the batch is the stage's own, so --text, --image, --audio and --speak can't be given"
        )
    from muomni.planning import walk

    hops, notes = walk.trace(source, stages[0], overrides, out=out)
    for line in notes:
        console.note(f"note: {line}")
    return f"training of {stages[0]}, one batch", hops


def _sampling(own: SamplingConfig | None, chosen: Mapping[str, float | None]) -> SamplingConfig:
    """How ids are drawn: what the model says of itself, but for the options that were given.

    Raises  ConfigError for a value out of range, and for an option that the model has no use for.
    """
    from pydantic import ValidationError

    from muomni.infer.sampling import SamplingConfig

    own = SamplingConfig() if own is None else own
    given = {name: value for name, value in chosen.items() if value is not None}
    if idle := [name for name in given if name not in type(own).model_fields]:
        raise ConfigError(f"--{idle[0]} has no effect on what no token model writes", hint="leave it out")
    try:
        return type(own)(**{**own.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several together
            raise ConfigError(f"--{first['msg'].removeprefix('Value error, ')}") from error
        name = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name}: {first['msg'].lower()}, got {first['input']}") from error


def _said(
    command: str, suffix: str, text: str | None, batch: Path | None, out: Path | None
) -> tuple[list[str], list[Path]]:
    """The texts that a command is asked for, and where what it makes of each goes."""
    if (text is None) == (batch is None):
        raise ConfigError(f"{command}: expected TEXT or --batch F.txt, one of both")
    if out is None:
        hint = f"--out F.{suffix}, or with --batch --out FOLDER"
        raise ConfigError(f"{command}: --out is missing", hint=hint)
    if batch is None:
        return [str(text)], [out]
    texts = _lines(batch)
    return texts, [out / f"{number:04d}.{suffix}" for number in range(len(texts))]


def _lines(path: Path) -> list[str]:
    """The lines of a text file, each with words; blank ones at the end don't count."""
    try:
        texts = path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError("undecodable", f"{path}: expected UTF-8 text: {error}") from error
    for number, line in enumerate(texts, start=1):
        if not line.strip():
            raise DataError(
                "empty",
                f"{path}:{number}: expected words, got a blank line",
                hint="each line becomes one file",
            )
    if not texts:
        raise DataError("empty", f"{path}: no line with words")
    return texts
