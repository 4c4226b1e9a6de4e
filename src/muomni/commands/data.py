"""`muomni data`: make the toy world, check a dataset, explain a sample, list the formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console
from muomni.errors import ConfigError, DataError

app = typer.Typer(help="Make, validate and describe data.")


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
    path: Annotated[Path, typer.Argument(help="a manifest, a corpus, or a folder of manifests, tars, pictures or sounds")],
    form: Annotated[str | None, typer.Option("--format", help="see `muomni data formats`; detected from the file if left out")] = None,
    template: Annotated[str | None, typer.Option(metavar="YAML", help="how flat rows are read, as under `sources:` of a recipe")] = None,
    root: Annotated[Path | None, typer.Option(help="folder of the media; the manifest's if left out")] = None,
    ctx_len: Annotated[int, typer.Option(min=1, help="count conversations longer than so many tokens")] = 512,
    val_split: Annotated[float, typer.Option(min=0, max=0.99, help="share held out")] = 0.05,
    seed: Annotated[int, typer.Option(help="of the split")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="a folder with tokenizer.json, for exact lengths")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole report as JSON")] = False,
) -> None:
    """Read every row and open every file of a dataset; exit 1 on errors."""
    from muomni.config import build, parse_yaml
    from muomni.data import report as reports
    from muomni.data.check import check as examine
    from muomni.data.formats import READERS
    from muomni.data.source import Source
    from muomni.tokens.bpe import Tokenizer

    if form is not None and form not in READERS:
        raise ConfigError(f"--format: expected one of {', '.join(READERS)}, got {form!r}")
    if not path.exists():
        raise DataError("missing", f"{path}: expected a manifest or a folder, found nothing there")
    asked = parse_yaml(template, "--template") if template else {}
    given = {"format": form, "root": str(root.absolute()) if root else None}
    source = build(Source, {**given, **asked, "path": str(path.absolute())}, where="--template")
    found = Tokenizer.load(tokenizer) if tokenizer else None
    report = examine(source, Path(), tokenizer=found, ctx_len=ctx_len, val_split=val_split, seed=seed)
    if as_json:
        console.result_json(report.to_json())
    else:
        console.table(f"check of {path.absolute()}", ["what", "value"], [list(row) for row in reports.summary(report)])
        for line in reports.lines(report):
            console.result(line)
    if report.total("error"):
        raise typer.Exit(1)


@app.command()
def explain(
    source: Annotated[str, typer.Argument(help="a recipe, a run's folder, or with --tokenizer a manifest")],
    stage: Annotated[str | None, typer.Argument(help="the stage that would train on it")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="where the page goes")] = Path("sample.html"),
    sample: Annotated[str | None, typer.Option(metavar="ID", help="the sample's id; `row-7` for a packed row of stage thinker")] = None,
    index: Annotated[int, typer.Option(min=0, help="else its number")] = 0,
    split: Annotated[str, typer.Option(help="train or valid: where --index counts")] = "train",
    checkpoint: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="a run whose weights give the loss of every token")] = None,
    tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="a folder with tokenizer.json, for a manifest")] = None,
) -> None:
    """Show one sample as a stage reads it: media, ids, labels, attention mask, and a checkpoint's loss a token."""
    from muomni import files
    from muomni.report import explain as pages

    wanted = pages.Wanted(sample, index, split)
    if stage is not None:
        files.write_text(out, pages.of_stage(source, stage, wanted, checkpoint=checkpoint))
    elif tokenizer is not None:
        files.write_text(out, pages.of_manifest(Path(source), tokenizer, wanted))
    else:
        raise ConfigError("explain: which stage?", hint="RECIPE STAGE, or MANIFEST --tokenizer DIR")
    console.result(str(out))


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
        "rows": "rows of JSON, csv, tsv, parquet or WebDataset's tars, by their columns or the source's template",
    }
    from muomni.data.formats import READERS

    console.table("formats", ["format", "what it reads"], [[name, about[name]] for name in READERS])
