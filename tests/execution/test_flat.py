"""Flat JSON configs of the source systems: what they come to, what is refused, and by which name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import cli, files
from muomni.errors import ConfigError
from muomni.execution import flat, migration, recipe

# The two configs that the sources print, by their values.
TRAINING = {"max_steps": 1000, "batch_size": 8, "lr": 0.0003, "warmup_steps": 10, "use_amp": True}
THINKER = """{
  // the network
  "vocab_size": 32000, "n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024,
  "dropout": 0.1, "rope_theta": 10000, "ctx_len": 512,
  "data_path": "data/text/corpus.txt",  // a sample a line
  /* training */
  "batch_size": 16, "num_epochs": 10, "learning_rate": 3e-4, "warmup_steps": 1000, "max_grad_norm": 1.0,
  "save_every": 1000, "eval_every": 500
}
"""
SPEECH = {"d_model": 192, "n_layers": 4, "n_heads": 3, "d_ff": 768}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in the sources' layout; of the media there are the tables alone."""
    for folder in ("configs", "data/text", "data/audio", "data/images/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/text/corpus.txt").write_text("a text\n")
    (tmp_path / "data/audio/asr.csv").write_text("wav,text\ndata/audio/a.wav,a word\n")
    (tmp_path / "data/audio/tts.csv").write_text("text,wav\na word,data/audio/a.wav\n")
    (tmp_path / "data/images/annotations.json").write_text('[{"image": "a.png", "caption": "red"}]')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(name: str, content: Any) -> str:
    path = Path("configs") / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def refused(content: Any, *words: str, overrides: list[str] | None = None) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.read(config("mine.json", content), overrides)
    said = str(caught.value)
    assert "mine.json" in said
    assert "\n" not in said
    assert all(word in said for word in words), said


# --- the printed configs ------------------------------------------------------------------------------------------------------------------


def test_the_printed_thinker_config_comes_to_its_values(project: Path) -> None:
    read = recipe.read(config("thinker_tiny.json", THINKER))
    assert list(read.stages) == ["thinker"]
    settings: Any = read.stages["thinker"].settings
    model = settings.model
    assert (model.vocab_size, model.layers, model.width, model.heads, model.ffn_width) == (
        32000,
        4,
        256,
        4,
        1024,
    )
    assert (model.dropout, model.rope_theta, model.ctx_len, model.kv_heads) == (0.1, 10000, 512, None)
    assert [(source.path, source.format) for source in settings.data] == [("data/text/corpus.txt", "text")]
    assert (settings.batch_size, settings.max_epochs, settings.max_steps, settings.lr) == (16, 10, None, 3e-4)
    assert (settings.warmup_steps, settings.max_grad_norm, settings.checkpoint_freq, settings.val_freq) == (
        1000,
        1.0,
        1000,
        500,
    )
    assert (read.base, read.folder) == (project, project / "runs" / "flat")


@pytest.mark.parametrize("stage", ["thinker", "hearing", "vision", "codec"])
def test_the_printed_training_config_serves_any_stage_that_is_named(stage: str) -> None:
    path = config("train.json", TRAINING)
    read = recipe.read(path, [f"stage={stage}"])
    settings = read.stages[stage].settings
    assert {key: getattr(settings, key) for key in TRAINING} == TRAINING
    assert settings.max_epochs is None
    assert settings.data[0].path.startswith("data/"), "it lies where the sources keep it"
    assert any(line.startswith("data: none is named") for line in read.notes)
    refused(TRAINING, "do not tell its stage", "--stage thinker|hearing")
    refused(TRAINING, "no such stage: 'ears'", overrides=["stage=ears"])


# --- the stages ---------------------------------------------------------------------------------------------------------------------------


def finished(*names: str) -> None:
    for name in names:
        (Path("runs/flat") / name / "final").mkdir(parents=True)


def test_the_sizes_of_every_stage_find_their_settings() -> None:
    hearing: Any = (
        recipe.read(
            config(
                "audio_enc_tiny.json",
                {
                    **SPEECH,
                    "dropout": 0.1,
                    "mel_bins": 128,
                    "sample_rate": 16000,
                    "frame_hop": 160,
                    "frame_win": 400,
                    "downsample_time": 8,
                }
                | {
                    "target_hz": 12.5,
                    "ctc_vocab_size": 98,
                    "max_text_len": 64,
                    "train_csv": "data/audio/asr.csv",
                    "max_mel_length": 1500,
                },
            )
        )
        .stages["hearing"]
        .settings
    )
    assert (hearing.model.width, hearing.model.layers, hearing.model.heads, hearing.model.ffn_width) == (
        192,
        4,
        3,
        768,
    )
    assert (hearing.model.downsample, hearing.model.dropout, hearing.max_text_len, hearing.max_s) == (
        8,
        0.1,
        64,
        15.0,
    )
    assert hearing.data[0].format == "asr_csv"

    vision: Any = (
        recipe.read(
            config(
                "vision_tiny.json",
                {
                    "img_size": 224,
                    "patch": 16,
                    "d_model": 128,
                    "n_layers": 4,
                    "n_heads": 2,
                    "d_ff": 512,
                    "embed_dim": 96,
                    "vocab_size": 10000,
                }
                | {
                    "temperature": 0.05,
                    "train_manifest": "data/images/annotations.json",
                    "image_root": "data/images/images",
                },
            )
        )
        .stages["vision"]
        .settings
    )
    assert (vision.model.image_size, vision.model.patch_size, vision.model.width, vision.model.embed_dim) == (
        224,
        16,
        128,
        96,
    )
    assert (vision.text.kind, vision.text.width, vision.text.embed_dim, vision.vocab_size) == (
        "bow",
        128,
        96,
        10000,
    )
    assert (vision.temperature, vision.data[0].format, vision.data[0].root) == (
        0.05,
        "captions",
        "data/images/images",
    )

    finished("thinker", "hearing", "vision")
    read = recipe.read(
        config(
            "talker_tiny.json",
            {
                **SPEECH,
                "codebooks": 2,
                "codebook_size": 64,
                "frame_rate": 25,
                "frame_ms": 40,
                "n_mels": 128,
                "tts_csv": "data/audio/tts.csv",
            }
            | {"use_gqa": False, "lr": 1e-3},
        )
    )
    codec, talker = read.stages["codec"].settings, read.stages["talker"].settings
    assert list(read.stages) == ["codec", "talker"]
    assert (
        codec.model.codebooks,
        codec.model.codebook_size,
        codec.model.stride_frames,
        codec.model.mel.num_mels,
    ) == (2, 64, 4, 128)  # type: ignore[attr-defined]
    assert codec.model.mel.scale == "htk", "the rest of the mel is the codec's own"  # type: ignore[attr-defined]
    assert (talker.model.width, talker.model.heads, talker.lr, codec.lr) == (192, 3, 1e-3, 1e-3)  # type: ignore[attr-defined]
    assert {source.format for stage in (codec, talker) for source in stage.data} == {"tts_csv"}
    assert list(
        recipe.read(config("codec.json", {"tts_csv": "data/audio/tts.csv", "codebooks": 4})).stages
    ) == ["codec"]

    mix = {
        "text_path": "data/text/corpus.txt",
        "image_manifest": "data/images/annotations.json",
        "asr_csv": "data/audio/asr.csv",
    }
    omni: Any = (
        recipe.read(
            config("omni_sft_tiny.json", {"sft_mix": {**mix, "image_root": "data/images/images"}, "lr": 5e-5})
        )
        .stages["omni"]
        .settings
    )
    assert [source.format for source in omni.data] == ["captions", "asr_csv", "text"]
    assert [source.prompt for source in omni.data] == [omni.prompts["image"], omni.prompts["audio"], None], (
        "as it is asked later"
    )
    assert omni.data[0].root == "data/images/images"


@pytest.mark.parametrize(
    ("content", "heads"),
    [
        ({"kv_groups": 2}, 2),  # B38: key heads, by the sources' own count of parameters
        ({"use_gqa": True, "kv_groups": 2, "n_heads": 8}, 2),
        ({"use_gqa": True, "n_heads": 8}, 4),
        ({"use_gqa": False, "kv_groups": 2}, None),
        ({}, None),
    ],
)
def test_kv_groups_are_key_heads(content: dict[str, Any], heads: int | None) -> None:
    read = recipe.read(config("mine.json", {"train_text": "data/text/corpus.txt", **content}))
    assert read.stages["thinker"].settings.model.kv_heads == heads  # type: ignore[attr-defined]
    told = any("kv_groups: left out" in line for line in read.notes)
    assert told == (content.get("use_gqa") is False)


def test_experts_are_as_many_and_as_wide_as_the_config_says() -> None:
    moe = {"train_text": "data/text/corpus.txt", "num_experts": 4, "num_experts_per_tok": 1, "d_ff": 96}
    experts = (
        recipe.read(config("mine.json", {**moe, "use_moe": True})).stages["thinker"].settings.model.experts
    )  # type: ignore[attr-defined]
    assert (experts.num_experts, experts.experts_per_token, experts.ffn_width) == (4, 1, 96)
    assert (
        recipe.read(config("mine.json", {**moe, "use_moe": False})).stages["thinker"].settings.model.experts
        is None
    )  # type: ignore[attr-defined]


def test_what_changes_nothing_is_left_out_and_told() -> None:
    idle = {
        "drop_last": True,
        "use_flash": True,
        "use_compile": True,
        "shuffle_buffer_size": 100,
        "use_moe": False,
        "num_experts": 8,
    }
    read = recipe.read(
        config("mine.json", {"train_text": "data/text/corpus.txt", "use_swiglu": True, **idle})
    )
    for key in ("drop_last", "use_flash", "use_compile", "shuffle_buffer_size"):
        assert any(line.startswith(f"{key}: left out") for line in read.notes), key


def test_a_data_path_tells_the_stage_where_no_key_does() -> None:
    for path, stage in (
        ("data/text/corpus.txt", "thinker"),
        ("data/text", "thinker"),
        ("data/audio/asr.csv", "hearing"),
        ("data/images/annotations.json", "vision"),
    ):
        assert list(recipe.read(config("mine.json", {"data_path": path, "max_steps": 5})).stages) == [stage]


def test_a_folder_of_text_is_its_text_files(project: Path) -> None:
    (project / "data/text/more").mkdir()
    (project / "data/text/more/b.txt").write_text("b\n")
    (project / "data/text/notes.md").write_text("no data\n")
    read = recipe.read(config("mine.json", {"data_path": "data/text", "max_steps": 5}))
    assert [source.path for source in read.stages["thinker"].settings.data] == [
        "data/text/corpus.txt",
        "data/text/more/b.txt",
    ]


def test_the_command_line_goes_before_the_file() -> None:
    path = config("mine.json", {"train_text": "data/text/corpus.txt", "n_layers": 4, "lr": 1e-3})
    settings: Any = (
        recipe.read(path, ["n_layers=2", "thinker.lr=2e-3", "seed=7", "max_steps=5"])
        .stages["thinker"]
        .settings
    )
    assert (settings.model.layers, settings.lr, settings.seed, settings.max_steps) == (2, 2e-3, 7, 5)


# --- bad input ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_text": "x.txt", "d_modle": 3}, ["d_modle", "did you mean d_model?"]),
        ({"train_text": "x.txt", "learning_rat": 3}, ["learning_rat", "did you mean learning_rate?"]),
        (
            {"train_text": "x.txt", "frame_hop": 160, "ctx_len": 5},
            ["train_text (thinker)", "frame_hop (hearing)", "--stage"],
        ),
        ({"train_text": "x.txt", "lr": 1e-3, "learning_rate": 1e-3}, ["learning_rate: given twice", "lr"]),
        ({"train_text": "x.txt", "data_path": "y.txt"}, ["names the data already"]),
        ({"train_text": "x.txt", "use_swiglu": False}, ["use_swiglu", "SwiGLU", "True"]),
        ({"train_text": "x.txt", "d_model": "wide"}, ["model.width", "'wide'"]),
        (
            {"train_csv": "data/audio"},
            ["train_csv", "data/audio is a folder", ".csv file is meant", "it holds asr.csv, tts.csv"],
        ),
        ({"train_text": "data/audio"}, ["train_text", "folder without a .txt file"]),
        (
            {"train_csv": "x.csv", "max_text_len_percentile": 95.0},
            ["max_text_len_percentile", "nearest: max_text_len"],
        ),
        ({"train_csv": "x.csv", "target_hz": 25, "downsample_time": 8}, ["target_hz", "25 Hz", "are 12.5"]),
        ({"train_csv": "x.csv", "ctc_vocab_size": 77}, ["ctc_vocab_size", "99 symbols"]),
        (
            {"tts_csv": "x.csv", "d_model": 8, "use_gqa": True, "kv_groups": 1},
            ["use_gqa can't be had", "kv_groups can't be had", "n_heads"],
        ),
        ({"tts_csv": "x.csv", "frame_rate": 12.5, "frame_ms": 40}, ["frame_rate", "25 Hz"]),
        ({"tts_csv": "x.csv", "frame_rate": 62.5}, ["frame_rate", "62.5 Hz can't be made"]),
        ({"sft_mix": {"txt_path": "x"}}, ["sft_mix.txt_path", "did you mean text_path?"]),
        ({"sft_mix": "x"}, ["sft_mix", "expected an object"]),
        ({"sft_mix": {}, "lr": 1e-4}, ["omni needs stage thinker", "runs/flat", "first"]),
        ({"tts_csv": "x.csv", "lr_g": 2e-4}, ["lr_g", "vocoder", "Griffin-Lim"]),
        ({"train_csv": "x.csv", "decoder_d_model": 256}, ["decoder_d_model", "ocr_csv"]),
        ({"train_text": "x.txt", "save_dir": 3}, ["save_dir", "expected a folder"]),
        ('{"train_text": "x.txt" /* for ever', ["line 1", "never closed"]),
    ],
)
def test_faults_name_the_config_s_own_key_and_the_way_out(content: Any, words: list[str]) -> None:
    refused(content, *words)


def test_a_folder_is_no_recipe() -> None:
    config("a.json", TRAINING)
    with pytest.raises(
        ConfigError, match=r"configs: no such recipe: a folder, where a file is meant \(it holds a.json\)"
    ):
        recipe.read("configs")


def test_a_recipe_in_json_stays_a_recipe(project: Path) -> None:
    path = config(
        "mine.json", '{"seed": 3, /* a recipe */ "thinker": {"data": [{"path": "data/text/corpus.txt"}]}}'
    )
    read = recipe.read(path)
    assert (read.stages["thinker"].settings.seed, read.folder) == (3, project / "runs" / "mine")
    with pytest.raises(ConfigError, match="--stage says what a flat JSON config is for"):
        recipe.read(path, ["stage=thinker"])
    with pytest.raises(ConfigError, match=r"sead.*did you mean seed"):
        recipe.read(config("bad.json", {"sead": 3, "thinker": {"data": [{"path": "a.txt"}]}}))


# --- where it goes ------------------------------------------------------------------------------------------------------------------------


def test_save_dir_is_a_link_to_the_stage_and_leaves_a_folder_of_others_alone(project: Path) -> None:
    content = {"train_text": "data/text/corpus.txt", "save_dir": "checkpoints/thinker_tiny"}
    read = recipe.read(config("thinker_tiny.json", content))
    finished("thinker")
    for link, target in read.links:
        flat.link(link, target)
        flat.link(link, target)
    assert (project / "checkpoints/thinker_tiny").resolve() == project / "runs/flat/thinker"
    assert not recipe.read(config("thinker_tiny.json", content)).links, "it is there already"
    (project / "checkpoints/old").mkdir()
    read = recipe.read(config("mine.json", {**content, "save_dir": "checkpoints/old"}))
    assert not read.links
    assert any("stays as it is" in line for line in read.notes)


def omni(**more: Any) -> str:
    return config("omni.json", {"sft_mix": {"text_path": "data/text/corpus.txt"}, **more})


def test_an_omni_config_finds_the_stages_that_it_names(project: Path) -> None:
    finished("thinker", "hearing", "vision")
    files.write_text(
        project / "runs/flat/thinker/config.yaml",
        yaml.safe_dump({"model": {"width": 256, "ctx_len": 512, "dropout": 0.0}}),
    )
    files.write_json(project / "runs/flat/thinker/final/config.json", {"model_type": "qwen3"})
    os.makedirs("checkpoints")
    os.symlink(project / "runs/flat/thinker", "checkpoints/thinker_tiny")
    read = recipe.read(
        omni(
            thinker_ckpt="checkpoints/thinker_tiny",
            audio_ckpt="checkpoints/nowhere",
            thinker={"d_model": 256, "dropout": 0.1},
        )
    )
    assert not read.links
    assert read.stages["omni"].settings.dropout == 0.1
    assert any(
        line.startswith("audio_ckpt: checkpoints/nowhere is not there: runs/flat/hearing is taken")
        for line in read.notes
    )
    with pytest.raises(
        ConfigError, match=r"thinker.d_model: 192, but the Thinker in runs/flat/thinker has 256"
    ):
        recipe.read(omni(thinker={"d_model": 192}))
    with pytest.raises(ConfigError, match=r"ctx_len: 256, but the Thinker"):
        recipe.read(omni(ctx_len=256))
    (project / "checkpoints/torch").mkdir()
    with pytest.raises(ConfigError, match=r"vision_ckpt: checkpoints/torch holds no finished stage vision"):
        recipe.read(omni(vision_ckpt="checkpoints/torch"))


def test_a_finished_stage_of_elsewhere_is_linked_and_never_two_of_one_name(project: Path) -> None:
    finished("hearing", "vision")
    theirs = project / "other/thinker"
    files.write_json(theirs / "final/config.json", {"model_type": "qwen3"})
    read = recipe.read(omni(thinker_ckpt="other"))
    assert read.links == [(project / "runs/flat/thinker", theirs)]
    finished("thinker")
    with pytest.raises(ConfigError, match=r"thinker_ckpt: other is not the thinker of this run.*--out"):
        recipe.read(omni(thinker_ckpt="other"))


def test_paths_start_at_the_config_where_all_of_them_lie_there(project: Path) -> None:
    (project / "configs/corpus.txt").write_text("a\n")
    assert recipe.read(config("a.json", {"train_text": "corpus.txt"})).base == project / "configs"
    assert recipe.read(config("b.json", {"train_text": "data/text/corpus.txt"})).base == project


# --- migrate ------------------------------------------------------------------------------------------------------------------------------


def test_a_migrated_config_is_a_recipe_of_the_same_settings(project: Path) -> None:
    one, two = (
        config("thinker_tiny.json", THINKER),
        config("ears.json", {"train_csv": "data/audio/asr.csv", "n_layers": 2}),
    )
    text, _ = migration.recipe([two, one], ["seed=7"])
    (project / "mine.yaml").write_text(text)
    read = recipe.read("mine.yaml")
    assert list(read.stages) == ["thinker", "hearing"]
    for path, stage in ((one, "thinker"), (two, "hearing")):
        assert read.stages[stage].settings == recipe.read(path, ["seed=7"]).stages[stage].settings
    assert set(yaml.safe_load(text)["thinker"]) & {"learning_rate", "num_epochs", "save_every"} == set(), (
        "in our own names"
    )


def test_a_part_of_a_curriculum_goes_where_the_rest_is(project: Path) -> None:
    text, _ = migration.recipe([omni()])
    (project / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="omni needs stage thinker"):
        recipe.read("mine.yaml")
    finished("thinker", "hearing", "vision")
    assert recipe.read("mine.yaml").folder == project / "runs/flat"


def test_migrate_refuses_what_is_no_flat_config(project: Path) -> None:
    path = config("mine.json", {"thinker": {"data": [{"path": "data/text/corpus.txt"}]}})
    with pytest.raises(ConfigError, match="no flat config"):
        migration.recipe([path])
    one = config("a.json", THINKER)
    with pytest.raises(ConfigError, match=r"stage thinker is that of a.json already"):
        migration.recipe([one, config("b.json", THINKER)])
    with pytest.raises(ConfigError, match="did you mean d_model"):
        migration.recipe([config("c.json", {"train_text": "x.txt", "d_modl": 3})])


def test_a_migrated_config_trains_what_the_config_trains(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUOMNI_PLAIN", "1")
    monkeypatch.setenv("MUOMNI_THREADS", "1")
    (project / "data/text/corpus.txt").write_text(
        "".join(f"the ring {n} is left of the star {7 * n % 40}\n" for n in range(40))
    )
    tiny = {
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "d_ff": 32,
        "ctx_len": 32,
        "vocab_size": 300,
        "dropout": 0.1,
    }
    loose = {"gates": {"overfits": 9.0, "floor": 9.0, "held_out_gap": 9.0}}
    path = config(
        "thinker_tiny.json",
        {**tiny, **loose, "data_path": "data/text", "batch_size": 4, "num_epochs": 3, "print_freq": 1},
    )

    def muomni(*args: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main(list(args))
        told = capsys.readouterr()
        assert not left.value.code, told.err
        return told.out

    assert muomni("run", path).strip() == str(project / "runs/flat")
    (project / "by_stdout.yaml").write_text(muomni("migrate", path))
    assert muomni("migrate", path, "--out", "by_out.yaml").strip() == "by_out.yaml"
    assert (project / "by_out.yaml").read_text() == (project / "by_stdout.yaml").read_text()
    muomni("run", "by_out.yaml")
    ran = [project / "runs" / name / "thinker" for name in ("flat", "by_out")]
    one, other = (
        [
            json.loads(line)["loss"]
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for run in ran
    )
    assert one == other
    assert len(one) > 3
    assert (ran[0] / "final/model.safetensors").read_bytes() == (
        ran[1] / "final/model.safetensors"
    ).read_bytes()
