"""`muomni data`: make the toy world, check a dataset, explain a sample, make and audit token shards, list
the formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.commands import console
from muomni.errors import ConfigError, DataError

if TYPE_CHECKING:
    from muomni.data.source import Source

app = typer.Typer(help="Make, validate and describe data.")
Form = Annotated[
    str | None, typer.Option("--format", help="see `muomni data formats`; detected from the file if left out")
]
Template = Annotated[
    str | None, typer.Option(metavar="YAML", help="how flat rows are read, as under `sources:` of a recipe")
]
Root = Annotated[Path | None, typer.Option(help="folder of the media; the manifest's if left out")]


@app.command()
def world(
    out: Annotated[Path, typer.Option(metavar="DIR", help="where it goes")],
    seed: Annotated[int, typer.Option(help="another seed, another world")] = 0,
    size: Annotated[str, typer.Option(help="tiny, small, quick or full")] = "quick",
) -> None:
    """Make the toy world: pictures, speech and text with known truth."""
    from muomni.data.world.build import build

    manifest = build(out, seed=seed, size=size)  # type: ignore[arg-type]  # build names the sizes if it is none of them
    rows = [[name, str(value)] for name, value in manifest.items() if isinstance(value, str | int | float)]
    console.table(f"toy world in {out}", ["what", "value"], rows)


@app.command()
def check(
    path: Annotated[
        Path, typer.Argument(help="a manifest, a corpus, or a folder of manifests, tars, pictures or sounds")
    ],
    form: Form = None,
    template: Template = None,
    root: Root = None,
    ctx_len: Annotated[int, typer.Option(min=1, help="count conversations longer than so many tokens")] = 512,
    val_split: Annotated[float, typer.Option(min=0, max=0.99, help="share held out")] = 0.05,
    seed: Annotated[int, typer.Option(help="of the split")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder with tokenizer.json, for exact lengths")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole report as JSON")] = False,
) -> None:
    """Read every row and open every file of a dataset; exit 1 on errors."""
    from muomni.data.check import report as reports
    from muomni.data.check.checker import check as examine
    from muomni.tokens.bpe import Tokenizer

    source = _source(path, form, template, root)
    text_tokenizer = Tokenizer.load(tokenizer) if tokenizer else None
    report = examine(
        source, Path(), tokenizer=text_tokenizer, ctx_len=ctx_len, val_split=val_split, seed=seed
    )
    if as_json:
        console.result_json(report.to_json())
    else:
        console.table(
            f"check of {path.absolute()}", ["what", "value"], [list(row) for row in reports.summary(report)]
        )
        for line in reports.lines(report):
            console.result(line)
    if report.total("error"):
        raise typer.Exit(1)


@app.command()
def explain(
    source: Annotated[str, typer.Argument(help="a recipe, a run's folder, or with --tokenizer a manifest")],
    stage: Annotated[str | None, typer.Argument(help="the stage that would train on it")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="where the page goes")] = Path("sample.html"),
    sample: Annotated[
        str | None,
        typer.Option(metavar="ID", help="the sample's id; `row-7` for a packed row of stage thinker"),
    ] = None,
    index: Annotated[int, typer.Option(min=0, help="else its number")] = 0,
    split: Annotated[str, typer.Option(help="train or valid: where --index counts")] = "train",
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="a run whose weights give the loss of every token")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder with tokenizer.json, for a manifest")
    ] = None,
) -> None:
    """Show one sample as a stage reads it: media, ids, labels, attention mask, and a checkpoint's loss a
    token."""
    from muomni import files
    from muomni.report import explain as pages

    choice = pages.SampleChoice(sample, index, split)
    if stage is not None:
        files.write_text(out, pages.of_stage(source, stage, choice, checkpoint=checkpoint))
    elif tokenizer is not None:
        files.write_text(out, pages.of_manifest(Path(source), tokenizer, choice))
    else:
        raise ConfigError("explain: which stage?", hint="RECIPE STAGE, or MANIFEST --tokenizer DIR")
    console.result(str(out))


@app.command()
def shard(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST...", help="what `data check` reads: manifests, folders, tars"),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="the folder of the shards; a run that was stopped goes on there"),
    ],
    tokenizer: Annotated[str, typer.Option(metavar="DIR", help="a folder with tokenizer.json")],
    codec: Annotated[
        list[str],
        typer.Option(
            metavar="DIR[:BOOKS[:LAYOUT]]",
            help="a stage or folder with a codec; at most one for images and one for audio",
        ),
    ],
    form: Form = None,
    template: Template = None,
    root: Root = None,
    processes: Annotated[int, typer.Option(min=1, help="at work side by side, one thread each")] = 1,
    samples: Annotated[int, typer.Option(min=1, help="of a shard")] = 1000,
    val_split: Annotated[
        float, typer.Option(min=0, max=0.99, help="share of the groups that is held out")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="of the split")] = 0,
    bad_limit: Annotated[
        float, typer.Option(min=0, max=1, help="largest share of unreadable samples")
    ] = 0.01,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="encode each medium alone, deterministic algorithms only: slower, recorded"
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(help="local, or ray (pip install 'muomni[scale]'): many machines, one shared folder"),
    ] = "local",
    device: Annotated[str, typer.Option(help="cpu or cuda; where the codecs compute")] = "cpu",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="remove the shards that are there and begin anew")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the index as JSON")] = False,
) -> None:
    """Turn samples into token shards: WebDataset tars of ids with an index (docs/shards.md)."""
    from functools import partial

    from muomni.data.tokenized import make
    from muomni.models import unified

    sources = [_source(path, form, template, root) for path in paths]
    codecs = [unified.CodecReference.parse(each) for each in codec]
    settings = make.ShardSettings(samples, val_split, seed, audit, bad_limit)
    about = make.shard(
        sources,
        out,
        partial(unified.open_unified, tokenizer, codecs, device),
        settings,
        processes=processes,
        engine=engine,
        fresh=fresh,
        provenance={"tokens": unified.to_json(tokenizer, codecs)},
        say=console.note,
    )
    if as_json:
        console.result_json(about)
        return
    rows = [
        [
            side,
            str(found["samples"]),
            str(len(found["shards"])),
            _counts(found["bad"]),
            _counts(found["skipped"]),
        ]
        for side, found in about["sides"].items()
    ]
    console.table(
        f"token shards in {out}", ["side", "samples", "shards", "unreadable", "without a task"], rows
    )


@app.command()
def chatml(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST...", help="recordings with their words, as `data check` reads them"),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the manifest: .json or .jsonl")],
    style: Annotated[
        str,
        typer.Option(
            help="turn: a reference is an earlier turn of the assistant's; user: it stands before the text"
        ),
    ] = "turn",
    references: Annotated[int, typer.Option(min=1, help="of each row, where its speaker has so many")] = 1,
    speaker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="who speaks in all clips; whom the rows name if left out"),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="share of each speaker's clips for validation, references too"),
    ] = 0.0,
    min_s: Annotated[float, typer.Option(min=0, help="shorter clips are left out")] = 0.5,
    max_s: Annotated[float, typer.Option(min=0, help="longer clips are left out")] = 30.0,
    form: Form = None,
    template: Template = None,
    root: Root = None,
    seed: Annotated[int, typer.Option(help="of the references")] = 0,
) -> None:
    """Turn recordings of speakers into a manifest for stage voice, each with a reference of its speaker."""
    from muomni.data import references as conversions
    from muomni.data.quarantine import Quarantine

    if style not in ("turn", "user"):
        raise ConfigError(f"--style: expected turn or user, got {style!r}")
    if out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"--out {out}: expected a name that ends in .json or .jsonl")
    sources = [_source(path, form, template, root) for path in paths]
    quarantine = Quarantine()
    made = conversions.convert(
        sources,
        quarantine,
        style=style,  # type: ignore[arg-type]  # one of the two
        references=references,
        seed=seed,
        speaker=speaker,
        held_out=held_out,
        min_s=min_s,
        max_s=max_s,
        home=out.absolute().parent,
    )
    conversions.write(out, made.rows)
    if quarantine.total:
        console.note(f"{quarantine.total} bad rows are left out: {quarantine.summary()}")
    for line in made.lines():
        console.note(line)
    of = f", {made.as_they_were} with the references that they had" if made.as_they_were else ""
    console.note(f"{len(made.rows)} rows of {len(made.speakers)} speakers{of}")
    console.result(str(out))


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="what `muomni data shard` made, or a stage that trained a codec"),
    ],
    level: Annotated[str, typer.Option(help="integrity (every sample, no codec) or full")] = "full",
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="instead of the one that made the shards")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR[:BOOKS[:LAYOUT]]", help="instead of those that made the shards"),
    ] = None,
    retokenise: Annotated[int, typer.Option(min=1, help="samples whose media are tokenised again")] = 512,
    decode: Annotated[int, typer.Option(min=1, help="samples of each modality whose ids are decoded")] = 64,
    max_len: Annotated[int | None, typer.Option(min=1, help="most positions of a row")] = None,
    seed: Annotated[int, typer.Option(help="of the samples that are chosen")] = 0,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="compare with it instead of the set's own baseline.json"),
    ] = None,
    set_baseline: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="make this set, or this codec, the baseline, and say why"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="of report.json and errors.jsonl; DIR/verify if left out"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Audit token shards, or the codec of a stage; exit 2 where shards must not be used, 1 where another check
    is red."""
    from muomni import files
    from muomni.data.tokenized.make import PROVENANCE
    from muomni.evaluate import codec_audit, token_shards
    from muomni.models import integrity, unified
    from muomni.tokens.space import TokenSpace

    if (folder / codec_audit.AUDIT).is_file() or (folder / integrity.FINAL).is_dir():
        _verify_codec(folder, set_baseline, as_json)
        return
    settings = token_shards.AuditSettings(level, retokenise, decode, max_len=max_len, seed=seed)
    tokens = None
    if level == "full" or codec or tokenizer:
        hint = "name --tokenizer and --codec, or --level integrity"
        made_by = files.read_stored(folder / PROVENANCE, dict, hint=hint).get("tokens", {})
        references = [unified.CodecReference.parse(each) for each in codec or []]
        references = references or [unified.CodecReference(*each) for each in made_by.get("codecs", [])]
        text = tokenizer or made_by.get("tokenizer")
        if text is None or not references:
            raise ConfigError(f"{folder / PROVENANCE}: it names no tokenizer and codecs", hint=hint)
        tokens = unified.open_unified(text, references)
    space = TokenSpace.load(folder) if tokens is None else tokens.space
    report = token_shards.audit(
        folder, space, tokens, settings, baseline=baseline, set_baseline=set_baseline, out=out
    )
    if as_json:
        console.result_json(report)
    else:
        console.table(
            f"audit of {folder}", ["check", "kind", "verdict", "wrong", "what"], token_shards.summary(report)
        )
        for problem in token_shards.first_problems(out or folder / "verify"):
            console.result(problem)
    if report["exit_code"]:
        raise typer.Exit(report["exit_code"])


def _verify_codec(folder: Path, set_baseline: str | None, as_json: bool) -> None:
    """What the audit of a codec's stage found, against the baseline that is kept for it."""
    from muomni.evaluate import codec_audit

    audit, judged = codec_audit.verify_stage(folder, set_baseline)
    if as_json:
        console.result_json({**audit, "gates": [each.to_json() for each in judged]})
    else:
        console.verdicts(f"audit of {folder}", [each.to_json() for each in judged])
        kept = codec_audit.baseline_of(folder)
        console.result(
            f"baseline: {kept if kept.is_file() else 'none is kept, --set-baseline REASON makes one'}"
        )
    if any(each.verdict == "red" for each in judged):
        raise typer.Exit(1)


def _source(path: Path, form: str | None, template: str | None, root: Path | None) -> Source:
    """The source of a manifest as `check` and `shard` are told to read it."""
    from muomni.config import build, parse_yaml
    from muomni.data.formats import READERS
    from muomni.data.source import Source

    if form is not None and form not in READERS:
        raise ConfigError(f"--format: expected one of {', '.join(READERS)}, got {form!r}")
    if not path.exists():
        raise DataError("missing", f"{path}: expected a manifest or a folder, found nothing there")
    asked = parse_yaml(template, "--template") if template else {}
    given = {"format": form, "root": str(root.absolute()) if root else None}
    return build(Source, {**given, **asked, "path": str(path.absolute())}, where="--template")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


@app.command()
def formats() -> None:
    """List the formats that `sources:` of a recipe can read."""
    about = {
        "text": "text documents, one a line (or whole paragraphs)",
        "samples": "our samples as rows; OpenAI's, TRL's, Qwen's, ms-swift's and Higgs' spellings too",
        "asr_csv": "csv with columns wav,text: speech to text",
        "tts_csv": "csv with columns text,wav: text to speech",
        "ocr_csv": "csv with columns image,text: read what is written",
        "captions": 'json [{"image", "caption"}] or csv image,caption',
        "images": "a folder of pictures, in class folders (train, val, test above them) or with metadata.csv, .jsonl, .parquet",
        "sounds": "the same of sounds",
        "llava": "conversations of LLaVA, ShareGPT, LLaMA-Factory: <image>, <audio> where the media stand",
        "alpaca": "instruction, input, output (and query, response): Alpaca, LLaMA-Factory, ms-swift, Dolly",
        "lhotse": "cuts of Lhotse: a sample a supervision",
        "ljspeech": "LJSpeech's folder: metadata.csv (id|text|as read) beside wavs/",
        "librispeech": "LibriSpeech's folder: SPEAKER/CHAPTER/*.trans.txt beside flac",
        "vctk": "VCTK's folder: txt/SPEAKER/*.txt beside wav48_silence_trimmed/ or wav48/",
        "higgs": "sets of Higgs Audio trainers: metadata.json (audio_file, transcript_file, speaker_id) beside its files",
        "rows": "rows of JSON, csv, tsv, parquet or WebDataset's tars, by their columns or the source's template",
    }
    from muomni.data.formats import READERS

    console.table("formats", ["format", "what it reads"], [[name, about[name]] for name in READERS])
