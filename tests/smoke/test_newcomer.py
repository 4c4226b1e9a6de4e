"""A newcomer's path: whoever comes from the source systems brings configs and data, runs them in order, and
gets answers.

Two configs are those that the sources print, the others are in their words at a tiny size; the data have the
sources' layout, with paths from the working folder in the tables. Sizes and bounds that a few steps can meet
stand on the command line: nothing is written by hand.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import ABLATION

from muomni import cli, files

ROWS = 28  # of each table: a few are held out
PRINTED = {"max_steps": 1000, "batch_size": 8, "lr": 0.0003, "warmup_steps": 10, "use_amp": True}
THINKER = """{
  "vocab_size": 32000, "n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024,  // the network
  "dropout": 0.1, "rope_theta": 10000, "ctx_len": 512,
  "data_path": "data/text/corpus.txt",
  "batch_size": 16, "num_epochs": 10, "learning_rate": 3e-4, "warmup_steps": 1000,  /* longer than the run */
  "max_grad_norm": 1.0, "save_every": 1000, "eval_every": 500
}
"""
TINY = {
    "n_layers": 1,
    "n_heads": 2,
    "d_ff": 32,
    "max_steps": 5,
    "batch_size": 4,
    "lr": 3e-4,
    "warmup_steps": 2,
    "val_split": 0.25,
    "drop_last": True,
}
CONFIGS: dict[str, Any] = {
    "thinker_tiny.json": THINKER,
    "train.json": PRINTED,
    "vision_tiny.json": {
        **TINY,
        "img_size": 112,
        "patch": 16,
        "d_model": 16,
        "embed_dim": 8,
        "vocab_size": 400,
        "temperature": 0.07,
        "train_manifest": "data/images/annotations.json",
        "image_root": "data/images/images",
        "save_dir": "checkpoints/vision_tiny",
    },
    "talker_tiny.json": {
        **TINY,
        "d_model": 16,
        "codebooks": 2,
        "codebook_size": 8,
        "frame_rate": 12.5,
        "frame_ms": 80,
        "sample_rate": 16000,
        "tts_csv": "data/audio/tts.csv",
        "save_dir": "checkpoints/talker_tiny",
    },
    "omni_sft_tiny.json": {
        "thinker_ckpt": "checkpoints/thinker_tiny",
        "audio_ckpt": "checkpoints/audio_enc_tiny",
        "vision_ckpt": "checkpoints/vision_tiny",
        "max_steps": 5,
        "batch_size": 4,
        "lr": 5e-5,
        "warmup_steps": 2,
        "prompt": "You are an omni assistant.",
        "ctx_len": 512,
        "thinker": {"d_model": 32, "n_layers": 2},
        "sft_mix": {
            "text_path": "data/text/corpus.txt",
            "image_manifest": "data/images/annotations.json",
            "image_root": "data/images/images",
            "asr_csv": "data/audio/asr.csv",
        },
        "save_dir": "checkpoints/omni_sft_tiny",
    },
}
LOOSE = {kind: {f"{kind}_{gate}": -9.0 for gate in ABLATION} for kind in ("image", "audio")}
SPOKEN = {
    "text_matters": -9.0,
    "text_sure": -9.0,
    "text_wins": 0.0,
    "own_cer": 99.0,
    "own_cer_cost": 99.0,
    "stops": 0.0,
    "ends": 0.0,
}


def gates(**bounds: float) -> str:
    return f"gates={json.dumps({'overfits': 9.0, 'held_out_gap': 99.0, **bounds})}"


SMALL = [
    "max_steps=5",
    "val_split=0.25",
    "batch_size=4",
    "warmup_steps=2",
    "d_model=16",
    "n_layers=1",
    "n_heads=2",
    "d_ff=32",
]
COMMANDS: dict[str, list[str]] = {
    "thinker": [
        "thinker_tiny.json",
        "d_model=32",
        "n_layers=2",
        "n_heads=2",
        "d_ff=64",
        "vocab_size=400",
        "save_dir=checkpoints/thinker_tiny",
        gates(floor=9.0),
    ],
    "hearing": [
        "train.json",
        "--stage",
        "hearing",
        *SMALL,
        "model.channels=4",
        "save_dir=checkpoints/audio_enc_tiny",
        gates(cer=9.0),
    ],
    "vision": ["vision_tiny.json", "explosion_norm=1e6", gates(retrieval=-1.0)],
    "talker": [
        "talker_tiny.json",
        "codec.quantise_after=3",
        "codec.model={entries: 8, width: 16, latent: 4, blocks: 1, fine_width: 8}",
        f"codec.{gates(round_trip=9.0, usage=0.0)}",
        f"talker.{gates(**SPOKEN)}",
        "talker.eval_items=4",
    ],
    "omni": [
        "omni_sft_tiny.json",
        "eval_items=8",
        "val_split=0.25",
        gates(**LOOSE["image"], **LOOSE["audio"], forgetting=99.0),
    ],
}


def lay_out(folder: Path, world: Path) -> None:
    """The sources' project: configs, and data of the toy world in their layout."""
    for inside in ("configs", "data/text", "data/audio/wav", "data/images/images"):
        (folder / inside).mkdir(parents=True)
    for name, content in CONFIGS.items():
        (folder / "configs" / name).write_text(
            content if isinstance(content, str) else json.dumps(content, indent=2)
        )

    def rows(name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]
        return sorted(found, key=lambda row: str(row["id"])[::-1])[:ROWS]

    texts = [
        row["text"] if "text" in row else " ".join(str(turn["content"]) for turn in row["messages"])
        for row in rows("text")
    ]
    (folder / "data/text/corpus.txt").write_text("\n".join(text.replace("\n", " ") for text in texts) + "\n")
    tables: dict[str, list[tuple[str, str]]] = {"transcripts": [], "speak": []}
    for name, table in tables.items():
        for row in rows(name):
            parts = [
                part
                for turn in row["messages"]
                if isinstance(turn["content"], list)
                for part in turn["content"]
            ]
            sound = next(part["path"] for part in parts if part["type"] == "audio")
            place = f"data/audio/wav/{Path(sound).name}"
            shutil.copy(world / sound, folder / place)
            table.append((place, row["extra"]["text"]))
    with (folder / "data/audio/asr.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("wav", "text"), *tables["transcripts"]])
    with (folder / "data/audio/tts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "wav"), *((words, place) for place, words in tables["speak"])])
    pictures = []
    for row in rows("captions"):
        picture = row["messages"][0]["content"][0]["path"]
        shutil.copy(world / picture, folder / "data/images/images" / Path(picture).name)
        pictures.append({"image": Path(picture).name, "caption": row["messages"][-1]["content"]})
    files.write_json(folder / "data/images/annotations.json", pictures)


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_six_stages_run_from_the_sources_configs_and_answer(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    lay_out(project, tiny_world)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MUOMNI_PLAIN", "1")
    monkeypatch.setenv("MUOMNI_THREADS", "1")
    for stage, (name, *args) in COMMANDS.items():
        code, _, told = call(capsys, "run", f"configs/{name}", *args)
        assert code == 0, (stage, told[-3000:])
        if stage == "thinker":  # 1000 steps of warm-up, and an epoch has two
            assert "warmup_steps 1000 is no shorter than the run of" in told
    assert {path.parent.name for path in Path("runs/flat").glob("*/certificate.json")} == {*COMMANDS, "codec"}
    # what is done is reused, whatever its config's name for it
    code, _, told = call(capsys, "run", "configs/vision_tiny.json", *COMMANDS["vision"][1:])
    assert code == 0
    assert "done before: reused" in told
    # and it answers, from the run and from the names that the sources give
    picture, sound = (
        next(Path("data/images/images").glob("*.png")),
        next(Path("data/audio/wav").glob("*.wav")),
    )
    code, out, told = call(
        capsys,
        "chat",
        "runs/flat",
        "--image",
        str(picture),
        "--audio",
        str(sound),
        "--text",
        "what is it?",
        "--json",
        "--max-new",
        "8",
    )
    assert code == 0, told
    assert "text" in json.loads(out)
    assert (
        call(capsys, "chat", "checkpoints/omni_sft_tiny", "--text", "what is red?", "--max-new", "8")[0] == 0
    )
    assert call(capsys, "transcribe", "checkpoints/audio_enc_tiny", str(sound))[0] == 0
    assert call(capsys, "speak", "runs/flat", "a red star", "--out", "star.wav")[0] == 0
    assert Path("star.wav").stat().st_size > 44
