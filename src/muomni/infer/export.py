"""A trained model as a folder that needs no other: ours, with all its parts, or the language model as
transformers opens it; rows of a token model also in another project's layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from muomni import files
from muomni.errors import ConfigError
from muomni.infer import folders
from muomni.infer.parts import Parts
from muomni.models import finite, integrity, lora, pretrained, reference, rows, siglip, store
from muomni.models.vision_tower import VisionTower
from muomni.tokens.bpe import BESIDE, GENERATION, Tokenizer
from muomni.tokens.space import TOKEN_SPACE, TokenSpace

Form = Literal["omni", "hf", "uti"]
ORIGIN = "origin.json"  # of the form hf: where it comes from
Network = TypeVar("Network", bound=torch.nn.Module)
TOKENIZER = (*BESIDE, GENERATION)
TOKENIZER_JSON = "tokenizer.json"


def answering(folder: Path | str) -> Path:
    """The `final/` of a folder's last stage that answers, or of the stage that it is.

    Raises  CheckpointError where nothing finished is there, or nothing that writes.
    """
    stages = folders.find(folder)
    return folders.require(stages, "omni", "rows", "thinker", ability="be exported", where=folder)[1]


def speaking(folder: Path | str, form: Form) -> Path | None:
    """The `final/` of the Talker that speaks what the folder answers, where the folder holds one and the form
    takes it along."""
    if form != "omni" or folders.kind(answering(folder)) == "rows":  # such a one speaks by its own tokens
        return None
    return folders.find(folder).get("talker")


def demand_room(out: Path, final: Path) -> None:
    """Raises ConfigError where something lies at `out` already, or `out` within what is exported."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"--out {out}: expected a new or an empty folder, found content", hint="give another, or empty it"
        )
    if out.resolve().is_relative_to(final.resolve()):
        raise ConfigError(f"--out {out} lies within {final}, which is exported", hint="give a place outside")


@dataclass(frozen=True)
class Spoken:
    """A Talker that goes along: its `final/`, and the certificate that speaks of it."""

    final: Path
    certificate: dict[str, Any]


def export(
    final: Path, out: Path, form: Form, certificate: dict[str, Any], voice: Spoken | None = None
) -> None:
    """Write what `answering` gave as a folder of its own, whole or not at all, with its certificate and where
    it comes from.

    omni  thinker/ (with LoRA merged, plain Qwen3), vision/, hearing/, projectors/, omni.json: `Engine.load`
          serves it; with a voice talker/ too, as its stage left it (tokenizer, codec, the Thinker that it
          listens to), with its own certificate
    hf    the language model as a Qwen3 checkpoint, LoRA merged; beside it lora/ in PEFT's files, and vision/
          where that is SigLIP's
    Of a token model (stages rows and mmpt):
    omni  thinker/ (LoRA merged), the rows, the token space, image_codec/ and audio_codec/: `Engine.load`
          serves it
    hf    a Qwen3 checkpoint of all ids, rows in both its tables, LoRA merged; a tokenizer that spells each of
          them (`TokenSpace.names`), and token_space.json
    uti   trainable_rows.pt, .json and token_space.json as another project has them (uti_v1): the rows alone
    Raises  ConfigError as `demand_room`, and for a form that such a model has not; CheckpointError where a
            file is not what its certificate names or holds no numbers, or a network that it is built on is
            missing or another.
    """
    demand_room(out, final)
    integrity.verify(final)
    if folders.kind(final) == "rows":
        _token_model(final, out, form, certificate)
        return
    if form == "uti":
        raise ConfigError(f"--to uti: {final} has no rows of media tokens", hint="--to hf, or --to omni")
    if voice is not None:
        integrity.verify(voice.final)
    parts = Parts(final, torch.device("cpu"))
    copied = (final, parts.text_folder, *([] if voice is None else [voice.final]))
    for folder in dict.fromkeys(copied):  # what is copied is not opened
        finite.demand_files(folder)
    manifest: dict[str, Any] = {
        "stage": certificate["stage"],
        "verdict": certificate["verdict"],
        "weights": certificate["weights"],
        "bases": {name: _name(manifest) for name, manifest in parts.bases.items()} or _earlier(parts),
    }
    if voice is not None:
        manifest["voice"] = {key: voice.certificate[key] for key in ("stage", "verdict", "weights")}
    with files.fresh_folder(out) as part:
        if "omni" not in parts.stages:
            shutil.copytree(final, part, dirs_exist_ok=True, ignore=_without_voice(final))
            say_where_to_stop(part)
            files.write_json(part / ORIGIN, manifest)
        elif form == "omni":
            _whole(parts, final, part)
            content = files.read_json(final / folders.OMNI)
            files.write_json(
                part / folders.OMNI,
                {"media": content["media"], "prompts": content.get("prompts", {}), "origin": manifest},
            )
        else:
            _language_model(parts, part)
            _beside(parts, final, part)
            files.write_json(part / ORIGIN, manifest)
        inherited = certificate.get("inherited", [])
        if voice is not None:
            shutil.copytree(voice.final, part / folders.VOICE)
            files.write_json(part / folders.VOICE / integrity.CERTIFICATE, voice.certificate)
            inherited = integrity.merged(inherited, integrity.waivers(voice.certificate))
        verdict = "waived" if inherited else certificate["verdict"]
        handed_on = {
            **certificate,
            "verdict": verdict,
            "inherited": inherited,
            "files": integrity.digests(part),
        }
        files.write_json(part / integrity.CERTIFICATE, handed_on)


def _token_model(final: Path, out: Path, form: Form, certificate: dict[str, Any]) -> None:
    """Write a token model in a form, with its certificate and where it comes from."""
    note = rows.Note.read(final)
    named = {"thinker": note.base, **note.codecs}
    manifest = {
        **{key: certificate[key] for key in ("stage", "verdict", "weights")},
        "bases": {name: _name(recorded) for name, recorded in named.items()},
    }
    write = {"hf": _resized, "omni": _with_codecs, "uti": _rows_alone}[form]
    with files.fresh_folder(out) as part:
        write(final, part)
        files.write_json(part / ORIGIN, manifest)
        files.write_json(part / integrity.CERTIFICATE, {**certificate, "files": integrity.digests(part)})


def _resized(final: Path, part: Path) -> None:
    """A token model as transformers opens it: more words, whose names stand for codes."""
    model, tokenizer, _ = rows.open_folder(final, dtype=None)
    place, space = rows.base_of(final), model.space
    decoder = rows.as_decoder(model)
    store.save(decoder, part)
    ends = [space.special(end) for end in ("text_end", "img_end", "aud_end")]
    content = {
        **{key: value for key, value in store.read_config(place).items() if key not in OF_ITS_FILES},
        "vocab_size": space.size,
        "tie_word_embeddings": False,
        "dtype": str(decoder.table.weight.dtype).removeprefix("torch."),
        "eos_token_id": ends,
        "pad_token_id": space.pad,
    }
    files.write_json(part / store.CONFIG, content)
    files.write_json(part / GENERATION, {"eos_token_id": ends, "pad_token_id": space.pad})
    tokenizer.save(part)
    _spell(part, space)
    space.save(part)


OF_ITS_FILES = ("torch_dtype", "transformers_weights", "bos_token_id")  # of a config.json, about other files


def _spell(folder: Path, space: TokenSpace) -> None:
    """Give the ids behind the text's names in a tokenizer.json."""
    path = folder / TOKENIZER_JSON
    content: dict[str, Any] = files.read_json(path)
    taken = {token["content"] for token in content["added_tokens"]} | set(content["model"].get("vocab", ()))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token, name in enumerate(space.names(), start=space.text_size):
        if name in taken:  # a word of the base's own means something else
            name = f"{name[:-2]}_mm|>"
        content["added_tokens"].append({"id": token, "content": name, **plain, "special": True})
    files.write_json(path, content)


def _with_codecs(final: Path, part: Path) -> None:
    """A token model with all that it stands on."""
    note, place = rows.Note.read(final), rows.base_of(final)
    base = part / rows.THINKER
    if (final / rows.ADAPTER).is_dir():
        decoder = lora.load(pretrained.open_decoder(place, dtype=None), final / rows.ADAPTER)
        store.save(lora.merged(decoder), base)
        dtype = str(decoder.table.weight.dtype).removeprefix("torch.")
        kept = {key: value for key, value in store.read_config(place).items() if key not in OF_ITS_FILES}
        tied = decoder.config.tied
        files.write_json(base / store.CONFIG, {**kept, "dtype": dtype, "tie_word_embeddings": tied})
        pretrained.open_tokenizer(place).save(base)
    else:
        shutil.copytree(place, base)
    codecs = {}
    for modality, recorded in note.codecs.items():
        name = f"{modality}_codec"
        shutil.copytree(reference.find(recorded, final)[1], part / name)
        codecs[modality] = {**recorded, "folder": name, "stage": False, "revision": None}
    words = files.sha256_once(base / TOKENIZER_JSON)
    told = {**note.base, "name": rows.THINKER, "digest": pretrained.digest(base), "words": words}
    for name in (rows.ROWS, TOKEN_SPACE):
        shutil.copyfile(final / name, part / name)
    files.write_json(part / rows.NOTE, {**asdict(note), "base": told, "codecs": codecs})


def _rows_alone(final: Path, part: Path) -> None:
    """The new rows of a base that rests, in the layout of another project.

    Raises  ConfigError where the base, or a LoRA on it, learned with them.
    """
    if (final / rows.ADAPTER).is_dir() or (final / rows.THINKER).is_dir():
        raise ConfigError(
            f"--to uti: {final} is more than its rows: its language model learned too, and uti_v1 has rows alone",
            hint="--to hf, or export stage rows",
        )
    model, _, note = rows.open_folder(final)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rows.export_source(model, part, base_llm=note.base_llm, created_utc=now)


def _without_voice(final: Path) -> Callable[[str, list[str]], list[str]]:
    """For copytree: leaves out the Talker of a folder that was exported before, which is copied by itself or
    not at all."""
    return lambda folder, names: [folders.VOICE] if Path(folder) == final and folders.VOICE in names else []


def _name(base: dict[str, Any]) -> dict[str, Any]:
    """Which network it was built on, without where that lay."""
    return {key: base.get(key) for key in ("name", "revision", "digest", "stage")}


def _earlier(parts: Parts) -> dict[str, Any]:
    """The bases of what was exported before."""
    origin = (
        files.read_json(parts.stages["omni"] / folders.OMNI).get("origin", {})
        if "omni" in parts.stages
        else {}
    )
    return dict(origin.get("bases", {}))


def _whole(parts: Parts, final: Path, part: Path) -> None:
    """All parts of a model that sees or hears."""
    _ = parts.media  # a torn omni.json is told before the work
    _language_model(parts, part / "thinker")
    for name in ("vision", "hearing", "projectors"):
        if (final / name).is_dir():
            shutil.copytree(final / name, part / name)
    if "vision" in parts.bases and parts.omni is not None and parts.omni.vision is not None:
        pretrained.save_tower(_vision_tower(parts), part / "vision")
    content = store.read_config(final / "projectors")
    files.write_json(part / "projectors" / store.CONFIG, {**content, "muomni": {}})


def _language_model(parts: Parts, folder: Path) -> None:
    """The Thinker that answers with its tokenizer's own files: its base's files where they hold it, else
    written anew."""
    source = parts.text_folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    is_as_stored = parts.bases.get("thinker", {}).get("dtype", "auto") == "auto"
    if is_as_stored and not (parts.stages["omni"] / "lora").is_dir():
        index = store.weight_index(source)
        for path in (source / store.CONFIG, *([] if index is None else [index]), *store.weight_files(source)):
            shutil.copyfile(path, folder / path.name)
        say_where_to_stop(folder)
        return
    # In the format of its base's files whatever this machine computes in: the same folder from any machine.
    store.save(_as_in_files(parts.thinker, source) if is_as_stored else parts.thinker, folder)
    # Its own config.json says more than our decoder asks: ends of generation, for one.
    dtype = str(next(parts.thinker.parameters()).dtype).removeprefix("torch.")
    content = {
        key: value
        for key, value in store.read_config(source).items()
        if key not in ("torch_dtype", "transformers_weights")
    }
    files.write_json(
        folder / store.CONFIG, {**content, "dtype": dtype, "tie_word_embeddings": parts.thinker.config.tied}
    )
    say_where_to_stop(folder)


def say_where_to_stop(folder: Path) -> None:
    """Have transformers stop writing where our engine does: at the end of a turn, and of a document.

    Ours are written anew, whatever version wrote the folder. Another maker's files stay as they are where
    they name the end of a turn; a base model's name the end of a document alone, and it would write on after
    each answer that it has learned since.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.is_own:
        tokenizer.save(folder, int(store.read_config(folder)["max_position_embeddings"]))
        return
    generation: dict[str, Any] = (
        files.read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    )
    ends = (generation or store.read_config(folder)).get(
        "eos_token_id"
    )  # transformers asks config.json only where the other file is missing
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer.special_tokens.end not in ends:
        ends = [tokenizer.special_tokens.end, *(ends or [tokenizer.special_tokens.eos])]
        filler = generation.get("pad_token_id", tokenizer.special_tokens.eos)
        files.write_json(folder / GENERATION, {**generation, "eos_token_id": ends, "pad_token_id": filler})
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = files.read_json(path) if path.is_file() else {}
    spelled, end = config.get("eos_token"), tokenizer.token(tokenizer.special_tokens.end)
    if end not in (spelled, spelled.get("content") if isinstance(spelled, dict) else None):
        pad = config.get("pad_token") or tokenizer.token(tokenizer.special_tokens.eos)
        files.write_json(path, {**config, "eos_token": end, "pad_token": pad})
        map_path = folder / "special_tokens_map.json"
        if map_path.is_file():
            files.write_json(map_path, {**files.read_json(map_path), "eos_token": end})


def _as_in_files(network: Network, folder: Path) -> Network:
    """The network in the number format of the largest tensor that a folder's files hold."""
    return network.to(store.stored_format(folder))


def _vision_tower(parts: Parts) -> VisionTower:
    """The eyes of a model that sees, as their files hold them, unless the recipe named another format."""
    assert parts.omni is not None
    assert parts.omni.vision is not None
    recorded = parts.bases.get("vision")
    if recorded is None or recorded.get("dtype", "auto") != "auto":
        return parts.omni.vision
    return _as_in_files(parts.omni.vision, reference.find(recorded, parts.stages["omni"])[1])


def _beside(parts: Parts, final: Path, part: Path) -> None:
    """What transformers and PEFT can open of the rest."""
    if (final / "lora").is_dir():
        shutil.copytree(final / "lora", part / "lora")
    if parts.omni is not None and isinstance(parts.omni.vision, siglip.SiglipTower):
        pretrained.save_tower(_vision_tower(parts), part / "vision")
