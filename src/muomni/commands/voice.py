"""Command voice-train: stage voice by the flags that users of Higgs Audio trainers know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from muomni.commands import console
from muomni.errors import ConfigError

CODECS = ("codec", "audio_tokenizer")  # folders beside a base's weights where its codec may lie


def voice_train(
    train_manifest: Annotated[
        Path, typer.Option("--train_manifest", metavar="FILE", help="ChatML: a JSON array, or JSON lines")
    ],
    output_dir: Annotated[Path, typer.Option("--output_dir", metavar="DIR", help="the run's folder")],
    base_ckpt: Annotated[
        str,
        typer.Option(
            "--base_ckpt",
            metavar="DIR|ID",
            help="the base: a folder that transformers wrote or in its makers' layout, or a hub id",
        ),
    ],
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            metavar="DIR|ID",
            help="of the base's codes; codec/ or audio_tokenizer/ in the base's folder if left out",
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="of the base on the hub")] = None,
    subfolder: Annotated[
        str | None, typer.Option("--subfolder", metavar="DIR", help="where in --base_ckpt the base lies")
    ] = None,
    codec_revision: Annotated[
        str | None, typer.Option("--codec_revision", help="of the codec on the hub")
    ] = None,
    codec_subfolder: Annotated[
        str | None, typer.Option("--codec_subfolder", metavar="DIR", help="where in --codec the codec lies")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch_size", min=1, help="rows of a micro-batch, of each rank")
    ] = 2,
    lr: Annotated[float, typer.Option("--lr", help="peak learning rate")] = 2e-4,
    wd: Annotated[float, typer.Option("--wd", help="weight decay")] = 0.01,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="passes through the data")] = 2,
    grad_accum: Annotated[int, typer.Option("--grad_accum", min=1, help="micro-batches of a step")] = 8,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="steps in which the rate rises")] = 100,
    lora_r: Annotated[int, typer.Option("--lora_r", min=1, help="rank of the adapter")] = 16,
    lora_alpha: Annotated[int, typer.Option("--lora_alpha", min=1, help="the delta is alpha / r * B A")] = 32,
    lora_dropout: Annotated[float, typer.Option("--lora_dropout", help="on what the adapter reads")] = 0.05,
    log_steps: Annotated[
        int, typer.Option("--log_steps", min=1, help="steps between two lines of losses")
    ] = 10,
    val_steps: Annotated[int, typer.Option("--val_steps", min=1, help="steps between two validations")] = 100,
    save_steps: Annotated[
        int, typer.Option("--save_steps", min=1, help="steps between two checkpoints")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of split, order and dropout")] = 42,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="any other setting of stage voice; may be given several times"
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew, whatever is there")] = False,
) -> None:
    """Tune Higgs Audio v2 to voices by LoRA; --log_steps, --val_steps and --save_steps count optimizer steps."""
    import yaml

    from muomni import files
    from muomni.commands.report import with_pages

    if not train_manifest.is_file():
        raise ConfigError(f"--train_manifest {train_manifest}: expected a file, found none")
    settings: dict[str, Any] = {
        "data": [{"path": str(train_manifest.absolute())}],
        "base": _reference(base_ckpt, revision, subfolder),
        "codec": _codec(codec, codec_revision, codec_subfolder, Path(base_ckpt, subfolder or "")),
        "batch_size": batch_size,
        "gradient_accumulation_steps": grad_accum,
        "max_epochs": epochs,
        "lr": lr,
        "wd": wd,
        "warmup_steps": warmup,
        "lora": {"r": lora_r, "alpha": lora_alpha, "dropout": lora_dropout},
        "print_freq": log_steps,
        "val_freq": val_steps,
        "checkpoint_freq": save_steps,
    }
    recipe = output_dir / "voice_train.yaml"
    # Every rank writes the same bytes, each whole or not at all: none need wait for another.
    files.write_text(recipe, yaml.safe_dump({"seed": seed, "voice": settings}, sort_keys=False))
    console.note(
        f"steps are optimizer steps of {batch_size} x {grad_accum} rows on each rank; "
        f"logged every {log_steps}, validated every {val_steps}, saved every {save_steps}"
    )
    from muomni.execution import runner

    overrides = [f"voice.{each}" for each in set_ or []]
    with with_pages() as trained:
        folder = runner.run(str(recipe), out=output_dir, overrides=overrides, fresh=fresh)
        trained(folder)
    console.result(str(folder))


def _reference(name: str, revision: str | None, subfolder: str | None) -> dict[str, str] | str:
    """A folder by its whole path, so that the recipe means it wherever it is read; a hub id as it is."""
    named = str(Path(name).absolute()) if Path(name).is_dir() else name
    more = {key: value for key, value in (("revision", revision), ("subfolder", subfolder)) if value}
    return {"name": named, **more} if more else named


def _codec(
    named: str | None, revision: str | None, subfolder: str | None, base: Path
) -> dict[str, str] | str:
    """The codec that is named, else the one that lies in the base's folder.

    Raises  ConfigError where there is none, or where one is placed that is not named.
    """
    if named is not None:
        return _reference(named, revision, subfolder)
    if revision or subfolder:
        flag = "--codec_revision" if revision else "--codec_subfolder"
        raise ConfigError(f"{flag} has no effect without --codec", hint="name the codec, or leave it out")
    for place in CODECS:
        if (base / place / "config.json").is_file():
            return _reference(str(base / place), None, None)
    raise ConfigError(
        f"--codec is missing: {base} holds none ({', '.join(f'{place}/' for place in CODECS)})",
        hint="Higgs' own audio tokenizer needs torchaudio, which is not supported; give the folder of a DAC of "
        "the base's books, 25 frames a second",
    )
