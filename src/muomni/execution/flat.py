"""A flat JSON config of the source systems (`{"d_model": 256, "train_text": ..., "num_epochs": 10}`), read as
a recipe.

Its keys are renamed (`flat_keys`), its paths become sources, and what it says of finished stages is looked
for. All flat configs of a working folder share one run folder, `runs/flat`, so that a later stage finds those
that it builds on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muomni import config
from muomni.errors import CheckpointError, ConfigError, DataError, did_you_mean
from muomni.execution import flat_keys as keys
from muomni.infer import folders
from muomni.media.mel import SPEECH, MelSpec
from muomni.models import integrity
from muomni.renamed import keys_of
from muomni.stages import registry
from muomni.stages.stage import StageSettings

NAME = "flat"  # of the run folder that all flat configs of a working folder share
PICTURES = "data/images/images"  # where the sources keep what their annotations.json names
SUFFIX = ".json"
CLOSE = 1e-6  # how far two ways to say one rate may be apart


@dataclass
class Flat:
    """What a flat config comes to.

    stages   settings as a recipe has them, by stage
    base     the folder in which its paths start
    notes    lines for the user: what was left out, found or taken, and why
    links    (name, what it names): a stage's folder under the name that the config gives it, or a finished
             stage of elsewhere
    """

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: Path = Path(".")
    notes: list[str] = field(default_factory=list)
    links: list[tuple[Path, Path]] = field(default_factory=list)


def is_flat(path: Path, values: Mapping[str, Any], header: frozenset[str]) -> bool:
    """Whether a file is a flat config: JSON, with settings on top where a recipe has its stages.

    Takes   header: what a recipe may say beside its stages.
    """
    if path.suffix.lower() != SUFFIX:
        return False
    stages = registry.names()
    if any(name in values and isinstance(values[name], dict) and "data" in values[name] for name in stages):
        return False
    ours = {key: value for key, value in values.items() if key not in header and key not in stages}
    return any(not isinstance(value, dict) or key in keys.DATA["omni"] for key, value in ours.items())


def read(
    path: Path, values: Mapping[str, Any], root: Path, settings: Mapping[str, type[StageSettings]]
) -> Flat:
    """A flat config as a recipe.

    Takes   values: of the file, with the command line's; `stage` among them says which it is, where its keys
            do not. root: the run folder; settings: of every stage in `flat_keys.STAGES`.
    Raises  ConfigError naming file and key for what is unknown, can't be had, or contradicts itself.
    """
    return _Reader(path, dict(values), root, settings).read()


class _Reader:
    """One flat config, while it is read."""

    def __init__(
        self, path: Path, values: dict[str, Any], root: Path, settings: Mapping[str, type[StageSettings]]
    ) -> None:
        self.path, self.values, self.root, self.settings = path, values, root, settings
        self.out = Flat(path)
        self.found: list[str] = []  # paths that the config names and that are there

    def fault(self, key: str, why: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {why}", hint=hint)

    def note(self, key: str, why: str) -> None:
        self.out.notes.append(f"{key}: {why}")

    def read(self) -> Flat:
        stage = self._stage()
        names = self._both() if stage == "talker" else [stage]
        self._rename(names)
        self._refuse_unknown(names)
        self.save_dir = self.values.pop("save_dir", None)
        for name in names:
            self.out.stages[name] = self._settings(name, is_alone=names == [name])
        for key in [key for key in self.values if key in keys.IDLE]:
            self.note(key, f"left out: {keys.IDLE[key]}")
        self._checkpoints(stage)
        if stage == "omni" or self.values.get("use_thinker_for_text"):
            self._same_thinker()
        self._link_save_dir(names[-1])
        self.out.base = self._base()
        stages_text = "stages codec and talker" if len(names) > 1 else f"stage {stage}"
        self.out.notes.insert(0, f"a flat config: {stages_text}, in {_near(self.root)}")
        return self.out

    # --- which stage --------------------------------------------------------------------------------------------------------------------

    def _stage(self) -> str:
        """The stage that the config is for, by what the user says, else by its keys, else by its data."""
        named = self.values.pop("stage", None)
        if named is not None:
            if named not in keys.STAGES:
                raise self.fault(
                    "stage",
                    f"no such stage: {named!r}",
                    f"the stages of flat configs are {', '.join(keys.STAGES)}",
                )
            return str(named)
        for key, why in keys.STRANGERS.items():
            if key in self.values:
                raise self.fault(key, why)
        signs = {stage: [key for key in own if key in self.values] for stage, own in keys.SIGNS.items()}
        signs["thinker"] = (
            [] if signs["vision"] else signs["thinker"]
        )  # vision has a vocabulary too, and a context
        if signs["omni"]:
            return "omni"  # it holds the sizes of others
        stages = [stage for stage, own in signs.items() if own]
        if len(stages) > 1:
            shown = " and ".join(f"{signs[stage][0]} ({stage})" for stage in stages)
            raise self.fault(
                shown,
                "keys of different stages",
                f"--stage {stages[0]} or --stage {stages[1]} says which it is",
            )
        if stages == ["talker"] and not any(key in self.values for key in keys.RENAMED["talker"]):
            return "codec"  # codebooks, and no network that speaks them
        if stages:
            return stages[0]
        if (by_data := self._stage_by_data()) is not None:
            return by_data
        raise ConfigError(
            f"{self.path}: its keys ({', '.join(self.values)}) do not tell its stage",
            hint=f"--stage {'|'.join(keys.STAGES)}",
        )

    def _stage_by_data(self) -> str | None:
        """The stage that reads a file such as `data_path` names."""
        named = self.values.get("data_path")
        path = None if not isinstance(named, str) else self._located(named)
        if path is None or path.is_dir() or path.suffix.lower() == ".txt":
            return None if named is None else "thinker"
        from muomni.data import formats
        from muomni.data.source import Source

        try:
            format_found = formats.sniff(path, Source(path=str(path)))
        except (ConfigError, DataError, OSError):
            return None
        return {"text": "thinker", "asr_csv": "hearing", "captions": "vision", "tts_csv": "talker"}.get(
            format_found
        )

    def _both(self) -> list[str]:
        """Codec and Talker, which the sources train by one file; the Talker alone where its file says nothing
        of a codec that is there."""
        says = any(key in self.values for key in (*keys.SHAPED["codec"], *keys.RENAMED["codec"]))
        return ["codec", "talker"] if says or not _is_finished(self.root / "codec") else ["talker"]

    # --- its keys -----------------------------------------------------------------------------------------------------------------------

    def _own(self, stage: str) -> list[str]:
        """The settings of a stage, ours and those of SPEC C1's synonyms."""
        fields = list(self.settings[stage].model_fields)
        return [*fields, *(name for name, ours in config.SYNONYMS.items() if ours in fields)]

    def _known(self, stage: str) -> list[str]:
        fixed = [key for key, stages in keys.FIXED_IN.items() if stage in stages]
        of_data = [*keys.DATA[stage], *(["image_root"] if stage == "vision" else [])]
        return [
            *keys.RENAMED[stage],
            *keys.SHAPED[stage],
            *of_data,
            *keys.IDLE,
            *fixed,
            *self._own(stage),
            "save_dir",
        ]

    def _rename(self, names: list[str]) -> None:
        """Give our own settings that have another name by now that name."""
        keys_known = {each for name in names for each in self._known(name)}
        renamed = {
            old: new
            for name in names
            for old, new in keys_of(self.settings[name]).items()
            if old not in keys_known
        }
        for old in [key for key in self.values if key in renamed]:
            config.say_renamed(old, renamed[old], str(self.path))
            if config.has(self.values, renamed[old]):
                raise self.fault(old, f"given twice (it means the same as {renamed[old]})")
            config.put(self.values, renamed[old], self.values.pop(old))

    def _refuse_unknown(self, names: list[str]) -> None:
        """Name all keys that can't be had, or that nobody knows, each with the nearest that is known."""
        faults = [
            line for key, value in self.values.items() if (line := self._refused(str(key), value, names))
        ]
        if faults:
            raise ConfigError(f"{self.path}: {'; '.join(faults)}")

    def _refused(self, key: str, value: Any, names: list[str]) -> str:
        """Why a key is refused, and what to write; empty where it is not."""
        refused = {key: why for name in names for key, why in keys.REFUSED.get(name, {}).items()}
        if key in refused and not (key in keys.HARMLESS_IF_FALSE and value is False):
            near, why = refused[key]
            return f"{key} can't be had: {why} (nearest: {near})"
        if key in keys.FIXED and any(name in keys.FIXED_IN[key] for name in names):
            accepted, why = keys.FIXED[key]
            return (
                ""
                if value in accepted
                else f"{key}: {value!r} can't be had: {why} (it may be {' or '.join(map(repr, accepted))})"
            )
        keys_known = [each for name in names for each in self._known(name)]
        if key in keys_known or key in refused:
            return ""
        owner = next((stage for stage in keys.STAGES if key in self._known(stage)), None)
        otherwise = (
            f"stage {owner} has it" if owner else f"it has {', '.join(self._known(names[-1])[:8])}, ..."
        )
        return f"{key}: no key of stage {names[-1]}; {did_you_mean(key, keys_known, otherwise)}"

    def _settings(self, stage: str, *, is_alone: bool) -> dict[str, Any]:
        """What the config says of one stage, in the words of a recipe."""
        settings: dict[str, Any] = {"data": self._data(stage)}
        own = self._own(stage)
        for key, value in self.values.items():
            if key in keys.RENAMED[stage]:
                config.put(settings, keys.RENAMED[stage][key], value)
            elif key in own and key not in (*keys.DATA[stage], "data"):
                if stage == "codec" and not is_alone and key in ("model", "gates", "extra_gates"):
                    continue  # of a file that is the Talker's too, these are the Talker's
                name = config.SYNONYMS.get(key, key)
                if name in settings and key != "model":
                    raise self.fault(key, f"given twice (it means the same as {name})")
                for path, part in (config.leaves({name: value}) if key == "model" else {name: value}).items():
                    config.put(settings, path, part)
        {
            "thinker": self._thinker,
            "hearing": self._hearing,
            "vision": self._vision,
            "codec": self._codec,
            "talker": self._talker,
        }.get(stage, lambda _: None)(settings)
        return settings

    def _thinker(self, settings: dict[str, Any]) -> None:
        """Key heads: `kv_groups` are their number, which counts where `use_gqa` does not say no. Experts,
        each as wide as `d_ff`."""
        settings.setdefault("model", {}).setdefault("vocab_size", 5000)
        uses, groups = self.values.get("use_gqa"), self.values.get("kv_groups")
        if uses is False and groups is not None:
            self.note("kv_groups", "left out: use_gqa is false, so each head has keys of its own")
        elif groups is not None:
            settings["model"]["kv_heads"] = groups
        elif uses:
            settings["model"]["kv_heads"] = max(
                1, int(settings["model"].get("heads", 4)) // 2
            )  # as the sources do
        if self.values.get("use_moe"):
            experts = {
                "num_experts": self.values.get("num_experts", 8),
                "experts_per_token": self.values.get("num_experts_per_tok", 2),
            }
            settings["model"].setdefault(
                "experts", {**experts, "ffn_width": settings["model"].get("ffn_width", 1024)}
            )

    def _hearing(self, settings: dict[str, Any]) -> None:
        """The mel's numbers, and that they agree with the rate that is promised."""
        mel = self._mel(
            MelSpec(),
            {
                "mel_bins": "num_mels",
                "sample_rate": "rate_hz",
                "frame_hop": "hop_samples",
                "frame_win": "window_samples",
            },
        )
        if mel != MelSpec():
            config.put(settings, "model.mel", mel.model_dump())
        downsample = settings.get("model", {}).get("downsample", 4)
        promised, real = (
            self.values.get("target_hz"),
            mel.frame_rate_hz / downsample if isinstance(downsample, int) else 0.0,
        )
        if promised is not None and abs(float(promised) - real) > CLOSE * real:
            raise self.fault(
                "target_hz",
                f"{promised} Hz, but {mel.frame_rate_hz:g} mel frames a second over {downsample} are {real:g}",
            )
        if downsample == 8:
            self.note(
                "downsample_time",
                f"8 leaves {real:g} states a second, and no text with more symbols than states can be learned; 4 is usual",
            )
        if self.values.get("ctc_vocab_size") == 98:
            self.note("ctc_vocab_size", "98 left the blank out: there are 99 symbols")
        self._longest(settings, 1 / mel.frame_rate_hz)

    def _vision(self, settings: dict[str, Any]) -> None:
        """Captions as a bag of words, as wide as the pictures' tower, or read by the Thinker."""
        width = self.values.get("d_model", 128)
        text = {"kind": "bow", "width": width, "embed_dim": self.values.get("embed_dim", 128)}
        if self.values.get("use_thinker_for_text"):
            text = {"kind": "thinker", "embed_dim": text["embed_dim"]}
        elif idle := [key for key in ("thinker_ckpt", "thinker", "ctx_len") if key in self.values]:
            self.note(
                ", ".join(idle), "left out: the captions are read without the Thinker (use_thinker_for_text)"
            )
        settings.setdefault("text", text)

    def _codec(self, settings: dict[str, Any]) -> None:
        """The mel's numbers, and how many of its frames are a code frame."""
        mel = self._mel(SPEECH, {"n_mels": "num_mels", "sample_rate": "rate_hz"})
        if mel != SPEECH:
            config.put(settings, "model.mel", mel.model_dump())
        if (rate := self._code_rate()) is not None:
            stride = mel.frame_rate_hz / rate
            if stride < 1 or abs(stride - round(stride)) > CLOSE:
                raise self.fault(
                    "frame_rate",
                    f"{rate:g} Hz can't be made of {mel.frame_rate_hz:g} mel frames a second",
                    "give 12.5, 25 or 50",
                )
            config.put(settings, "model.stride_frames", round(stride))
        self._longest(settings, 1 / (rate or mel.frame_rate_hz / 8))

    def _talker(self, settings: dict[str, Any]) -> None:
        """Codebooks are the codec's; the rest is the network's."""
        config.put(
            settings, "model.text_vocab", settings.get("model", {}).get("text_vocab", 1)
        )  # the tokenizer's number takes its place
        self._longest(settings, 1 / (self._code_rate() or 12.5))

    def _code_rate(self) -> float | None:
        """Code frames a second, by `frame_rate` or `frame_ms`."""
        rate, ms = self.values.get("frame_rate"), self.values.get("frame_ms")
        for key, value in (("frame_rate", rate), ("frame_ms", ms)):
            if value is not None and (not isinstance(value, int | float) or value <= 0):
                raise self.fault(key, f"expected a number above 0, got {value!r}")
        if rate and ms and abs(rate * ms / 1000 - 1) > CLOSE:
            raise self.fault(
                "frame_rate", f"{rate} Hz, but frame_ms {ms} are {1000 / ms:g} Hz", "leave one of them out"
            )
        return float(rate) if rate else 1000 / ms if ms else None

    def _mel(self, usual: MelSpec, names: dict[str, str]) -> MelSpec:
        """The usual mel with the config's numbers."""
        values_set = {ours: self.values[key] for key, ours in names.items() if key in self.values}
        rate = values_set.get("rate_hz", usual.rate_hz)
        if isinstance(rate, int | float) and rate / 2 < usual.f_max_hz:
            values_set["f_max_hz"] = rate / 2
        return config.build(
            MelSpec, {**usual.model_dump(), **values_set}, f"{self.path}: mel ({', '.join(names)})"
        )

    def _longest(self, settings: dict[str, Any], frame_s: float) -> None:
        """`max_mel_length` in seconds. The sources cut what is longer; here it is set aside, for its words
        would not fit any more."""
        frames = self.values.get("max_mel_length")
        if frames is not None:
            settings.setdefault("max_s", round(float(frames) * frame_s, 3))
            self.note(
                "max_mel_length",
                f"{frames} frames are max_s {settings['max_s']:g}; longer rows are set aside, not cut",
            )

    # --- its data -----------------------------------------------------------------------------------------------------------------------

    def _data(self, stage: str) -> list[dict[str, Any]]:
        """The sources that the config names, or those that lie where the source systems keep them."""
        named = [key for key in ("data", *keys.DATA[stage]) if key in self.values]
        if len(named) > 1:
            raise self.fault(named[1], f"{named[0]} names the data already", "leave one of them out")
        value = self.values[named[0]] if named else None
        if stage == "omni" and (value is None or named == ["sft_mix"]):
            return self._mix(value)
        if value is None:
            usual = keys.PLACES.get(stage, "")
            if self._located(usual) is None:
                return []  # told when the stage begins, or is planned
            self.note("data", f"none is named: {usual} is taken")
            value, named = usual, ["data"]
        return [
            source
            for each in (value if isinstance(value, list) else [value])
            for source in self._sources(named[0], each, stage)
        ]

    def _mix(self, mix: Any) -> list[dict[str, Any]]:
        """Captions, transcripts and texts for stage omni, each asked as a lone picture or sound is asked
        later."""
        if mix is None:
            mix = {
                "image_manifest": keys.PLACES["vision"],
                "asr_csv": keys.PLACES["hearing"],
                "text_path": keys.PLACES["thinker"],
            }
            mix = {key: path for key, path in mix.items() if self._located(path) is not None}
            if not mix:
                return []
            self.note("data", f"none is named: {', '.join(mix.values())} are taken")
        if not isinstance(mix, dict):
            raise self.fault("sft_mix", f"expected an object with {', '.join(keys.MIX)}, got {mix!r:.60}")
        for key in mix:
            if key not in keys.MIX:
                way = did_you_mean(key, keys.MIX, f"it has {', '.join(keys.MIX)}", cutoff=0.5)
                raise self.fault(f"sft_mix.{key}", "no such part", way)
        prompts: Any = self.settings["omni"].model_fields["prompts"].default | self.values.get("prompts", {})
        mixed: list[dict[str, Any]] = []
        for key, stage in (("image_manifest", "vision"), ("asr_csv", "hearing"), ("text_path", "thinker")):
            if key not in mix:
                continue
            sources = self._sources(f"sft_mix.{key}", mix[key], stage, mix.get("image_root"))
            prompt = {"vision": prompts["image"], "hearing": prompts["audio"]}.get(stage)
            mixed += [{**source, **({"prompt": prompt} if prompt else {})} for source in sources]
        return mixed

    def _sources(self, key: str, value: Any, stage: str, image_root: Any = None) -> list[dict[str, Any]]:
        """A path as sources of a recipe; what is a source already stays as it is."""
        if isinstance(value, dict):
            return [value]
        if not isinstance(value, str):
            raise self.fault(key, f"expected a path, got {value!r:.60}")
        path = self._located(value)
        if path is not None and path.is_dir() and stage != "vision":
            return self._folder(key, value, path, stage)
        source: dict[str, Any] = {"path": value}
        kind = keys.FORMATS.get(stage)
        if (
            kind is not None
            and (path is None or path.is_file())
            and not (stage == "thinker" and value.lower().endswith((".jsonl", ".json", ".csv")))
        ):
            source["format"] = kind if stage != "vision" or not value.lower().endswith(".jsonl") else None
        source = {k: v for k, v in source.items() if v is not None}
        root = image_root if image_root is not None else self.values.get("image_root")
        if stage == "vision":
            root = root or (PICTURES if value == keys.PLACES["vision"] and self._located(PICTURES) else None)
            if root is not None:
                source["root"] = root
                self._located(root)
        return [source]

    def _folder(self, key: str, value: str, path: Path, stage: str) -> list[dict[str, Any]]:
        """The text files of a folder.

        Raises  ConfigError where a file is meant, or the folder holds no text.
        """
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        suffix = ".txt" if stage == "thinker" else ".csv"
        fitting = [file for file in inside if file.suffix.lower() == suffix]
        if stage != "thinker":
            hint = (
                f"it holds {', '.join(file.name for file in fitting[:4])}"
                if fitting
                else f"give a {suffix} file"
            )
            raise self.fault(key, f"{value} is a folder, a {suffix} file is meant", hint)
        if not fitting:
            raise self.fault(
                key, f"{value} is a folder without a .txt file", "give a text file, or a folder of them"
            )
        self.note(
            key,
            f"{value} holds {', '.join(file.name for file in fitting[:4])}"
            + (f" and {len(fitting) - 4} more" if len(fitting) > 4 else ""),
        )
        return [{"path": str(Path(value) / file.relative_to(path)), "format": "text"} for file in fitting]

    def _located(self, value: str) -> Path | None:
        """Where a path leads: from the config's folder, else from the working folder; None where nothing is
        there."""
        if not value:
            return None
        named = Path(value).expanduser()
        for place in (self.path.parent / named, Path.cwd() / named):
            if place.exists():
                self.found.append(str(named))
                return place
        return None

    def _base(self) -> Path:
        """The config's folder where all that it names lies there, else the working folder: the sources run
        from the project's."""
        own = self.path.resolve().parent
        return own if all((own / path).exists() for path in self.found) else Path.cwd()

    # --- the stages that it builds on -------------------------------------------------------------------------------------------------

    def _checkpoints(self, stage: str) -> None:
        """Find the finished stages that the config names, in this run folder or elsewhere."""
        named = {key: name for key, name in keys.CHECKPOINTS.items() if key in self.values}
        if stage == "vision" and not self.values.get("use_thinker_for_text"):
            named = {}
        for key, name in named.items():
            value, own = str(self.values[key]), self.root / name
            place = self._located(value)
            if place is None:
                if _is_finished(own):
                    self.note(key, f"{value} is not there: {_near(own)} is taken")
                continue
            try:
                final = folders.find(place).get(name)
            except CheckpointError:
                final = None
            if final is None:
                if key == "talker_ckpt":  # which stage omni does not build on
                    continue
                raise self.fault(
                    key,
                    f"{value} holds no finished stage {name}",
                    "train it with muomni run and its own config; .pt files of others are not opened",
                )
            theirs = final.parent if final.name == integrity.FINAL else final
            if own.exists() and own.resolve() != theirs.resolve():
                raise self.fault(
                    key,
                    f"{value} is not the {name} of this run, {_near(own)}",
                    "--out DIR gives this config a run of its own",
                )
            if not own.exists():
                self.out.links.append((own, theirs.resolve()))
        if "prompt" in self.values:
            self.note(
                "prompt", "left out: no words of the system stand before a question, in training or later"
            )

    def _same_thinker(self) -> None:
        """See that the sizes which an omni config repeats are those of the Thinker that it starts from."""
        thinker = self.values.get("thinker") or {}
        if not isinstance(thinker, dict):
            raise self.fault("thinker", f"expected the sizes of the Thinker, got {thinker!r:.60}")
        thinker = {**thinker, **({"ctx_len": self.values["ctx_len"]} if "ctx_len" in self.values else {})}
        folder = next(
            (theirs for own, theirs in self.out.links if own.name == "thinker"), self.root / "thinker"
        )
        try:
            real = config.current(config.read_yaml(folder / "config.yaml"), self.settings["thinker"])["model"]
        except (ConfigError, KeyError):
            return  # there is none yet, which is told where it is needed
        for key, name in keys.RENAMED["thinker"].items():
            ours = name.removeprefix("model.")
            if key in thinker and ours != "dropout" and thinker[key] != real.get(ours):
                raise self.fault(
                    key if key == "ctx_len" else f"thinker.{key}",
                    f"{thinker[key]!r}, but the Thinker in {_near(folder)} has {real.get(ours)!r}",
                    "leave it out: sizes come with the weights",
                )
        if "omni" in self.out.stages and thinker.get("dropout", real.get("dropout")) != real.get("dropout"):
            self.out.stages["omni"].setdefault("dropout", thinker["dropout"])

    def _link_save_dir(self, stage: str) -> None:
        """Have the stage's folder under the name that the sources give it."""
        if self.save_dir is None:
            return
        if not isinstance(self.save_dir, str):
            raise self.fault("save_dir", f"expected a folder, got {self.save_dir!r:.60}")
        link, folder = Path.cwd() / self.save_dir, self.root / stage
        if link.resolve() == folder.resolve():
            return
        if link.exists() and not link.is_symlink():
            self.note(
                "save_dir", f"{self.save_dir} is there and stays as it is; the stage goes to {_near(folder)}"
            )
        else:
            self.note("save_dir", f"{self.save_dir} will be a link to {_near(folder)}")
            self.out.links.append((link, folder))


def link(name: Path, target: Path) -> None:
    """Make a link of that name, in the place of an older one."""
    name.parent.mkdir(parents=True, exist_ok=True)
    if name.is_symlink():
        name.unlink()
    name.symlink_to(target, target_is_directory=True)


def _is_finished(stage: Path) -> bool:
    return (stage / integrity.FINAL).is_dir()


def _near(path: Path) -> str:
    """A path as one types it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
