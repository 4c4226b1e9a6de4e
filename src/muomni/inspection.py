"""Describe a file or folder for `muomni inspect`: weights, networks, runs, checkpoints, sound, pictures,
manifests.

Reads headers and never unpickles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muomni import files, units
from muomni.errors import UserError

MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
BYTES_OF = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
SOUND = {
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".au",
    ".caf",
    ".w64",
    ".m4a",
    ".aac",
    ".wma",
    ".amr",
}
PICTURE = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
TEXT = {".txt", ".md", ".csv", ".yaml", ".yml"}
PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def inspect(path: str | Path) -> dict[str, Any]:
    """Facts about a file or folder as one JSON object: `path`, `kind`, and the fields of that kind.

    kind    weights (tensors, parameters) | network (config, tensors, parameters, verdict) | lora (rank,
            targets, parameters) | omni (what sees, hears and answers, and the bases that it stands on) |
            rows (of a token space, on what base and codecs) | token space (regions, codecs, hash) |
            token shards (samples, ids, token space) | checkpoint | stage | run (stages with verdicts) |
            tokenizer | data | sound | picture | jsonl | json | text.
    Raises  UserError where nothing is there, the content is torn, or the kind is unknown.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return {"path": str(path), **_folder(path)}
        if not path.is_file():
            raise UserError(f"{path}: no such file or folder", hint="expected a file or folder")
        return {"path": str(path), **_file(path)}
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be read") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: can't be read: {' '.join(str(error).split())}",
            hint="the file is torn, or its suffix is wrong",
        ) from error


def _folder(path: Path) -> dict[str, Any]:
    if (path / "omni.json").is_file():
        return _omni(path)
    if (path / "trainable_rows.json").is_file():
        return _rows(path)
    if (path / "shards.json").is_file() and (path / "index.json").is_file():
        return _shards(path)
    if (path / "adapter_config.json").is_file():
        return _lora(path)
    if (path / "config.json").is_file():
        beside = {"lora": _lora(path / "lora")} if (path / "lora").is_dir() else {}
        origin = path / "origin.json"
        return _network(path) | beside | ({"origin": files.read_json(origin)} if origin.is_file() else {})
    if (path / "certificate.json").is_file():
        return _stage(path)
    if (path / "manifest.json").is_file():
        return _with_manifest(path)
    stages = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _is_stage(folder)]
    if stages:
        return {"kind": "run", "stages": {folder.name: _verdict(folder) for folder in stages}}
    if _is_stage(path):
        return {"kind": "stage", "verdict": None, "checkpoints": _checkpoints(path), "speed": _speed(path)}
    if (path / "tokenizer.json").is_file():
        return _tokenizer(path / "tokenizer.json")
    raise UserError(
        f"{path}: not a folder of ours",
        hint="expected a run, a stage, a checkpoint, a network (config.json + model.safetensors), rows, token shards or a tokenizer",
    )


def _file(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise UserError(
            f"{path}: pickled files can run code and are never opened here",
            hint="save it as safetensors where you trust it",
        )
    readers: list[tuple[bool, Callable[[Path], dict[str, Any]]]] = [
        (suffix == ".safetensors", _weights),
        (suffix in SOUND, _sound),
        (suffix in PICTURE, _picture),
        (suffix == ".jsonl", _jsonl),
        (path.name == "tokenizer.json", _tokenizer),
        (path.name == "token_space.json", _space),
        (suffix == ".json", _json),
        (suffix in TEXT, _text),
    ]
    for fits, reader in readers:
        if fits:
            return reader(path)
    suffixes = sorted({".safetensors", ".jsonl", ".json"} | SOUND | PICTURE | TEXT)
    raise UserError(
        f"{path}: unknown kind of file {suffix or 'without a suffix'!r}", hint=f"known: {' '.join(suffixes)}"
    )


def _weights(path: Path) -> dict[str, Any]:
    """Tensors by a safetensors header, checked against the file's size."""
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or not 2 <= length <= min(MOST_HEADER_BYTES, size_bytes - 8):
            raise UserError(
                f"{path}: torn or no safetensors file: a header of {length} bytes does not fit a file of {size_bytes}"
            )
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {})
    announced = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if announced != size_bytes:
        raise UserError(f"{path}: torn: the header announces {announced} bytes, the file has {size_bytes}")
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        needed = BYTES_OF.get(tensor["dtype"], 0) * math.prod(tensor["shape"])
        if needed and needed != end - begin:
            raise UserError(
                f"{path}: torn: tensor {name} needs {needed} bytes, the header gives it {end - begin}"
            )
    tensors = {name: {"shape": tensor["shape"], "dtype": tensor["dtype"]} for name, tensor in header.items()}
    parameters = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    return {
        "kind": "weights",
        "parameters": parameters,
        "bytes": size_bytes,
        "metadata": metadata,
        "tensors": tensors,
    }


def _network(path: Path) -> dict[str, Any]:
    config = files.read_json(path / "config.json")
    index = path / "model.safetensors.index.json"
    names = [
        config.get("transformers_weights") or "model.safetensors"
    ]  # the same choice as models.store.weight_index
    if names[0].endswith(".index.json"):
        index, names = path / names[0], []
    if not names or (index.is_file() and not (path / names[0]).is_file()):
        names = sorted(set(files.read_json(index)["weight_map"].values()))
    tensors: dict[str, Any] = {}
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names a file outside of its folder: {name}")
        if not (path / name).is_file():
            raise UserError(
                f"{path}: config.json is there, {name} is missing", hint="copy the whole folder again"
            )
        tensors |= _weights(path / name)["tensors"]
    parameters = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    about = {
        "kind": "network",
        "model_type": config.get("model_type"),
        "parameters": parameters,
        "verdict": _verdict(path),
    }
    if number := config.get("num_experts") or config.get("num_local_experts"):
        in_experts = sum(
            math.prod(tensor["shape"]) for name, tensor in tensors.items() if ".mlp.experts." in name
        )
        about["active_parameters"] = parameters - in_experts // number * (
            number - config["num_experts_per_tok"]
        )
    return about | {"config": config, "tensors": tensors}


def _omni(path: Path) -> dict[str, Any]:
    """A `final/` with omni.json, or an exported one: its parts, and the base networks that it refers to."""
    content = files.read_json(path / "omni.json")
    parts = [folder.name for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()]
    networks = {name: _network(path / name) for name in parts}
    shape = networks["projectors"]["config"] if "projectors" in networks else {}
    about: dict[str, Any] = {
        "kind": "omni",
        "verdict": _verdict(path.parent if path.name == "final" else path),
    }
    about["image_tokens"] = content["media"].get("image_tokens")
    about["image_size"] = content["media"].get("image_size")
    grid = shape.get("pool_grid", shape.get("grid"))  # its older name
    about["connector"] = shape.get("perceiver") or {"pool_grid": grid, "audio_pool": shape.get("audio_pool")}
    about["parameters"] = {name: network["parameters"] for name, network in networks.items()}
    if (path / "lora").is_dir():
        about["lora"] = _lora(path / "lora")
    bases = content.get("bases", {})
    about["bases"] = {
        name: {key: base.get(key) for key in ("name", "revision", "digest", "stage")}
        for name, base in bases.items()
    }
    return about | ({"origin": content["origin"]} if "origin" in content else {})


def _rows(path: Path) -> dict[str, Any]:
    """The `final/` of stage rows or mmpt: new rows of a token space, and what they refer to or hold."""
    note, weights = (
        files.read_json(path / "trainable_rows.json"),
        _weights(path / "trainable_rows.safetensors"),
    )
    about: dict[str, Any] = {
        "kind": "rows",
        "verdict": _verdict(path.parent if path.name == "final" else path),
    }
    about["rows"] = f"{note['row_start']}..{note['row_end'] - 1}"
    about["parameters"] = weights["parameters"]
    about["longest"] = note["longest"]
    bases = {"thinker": note["base"], **note["codecs"]}
    about["bases"] = {
        name: {key: base.get(key) for key in ("name", "revision", "digest", "stage")}
        for name, base in bases.items()
    }
    if (path / "lora").is_dir():
        about["lora"] = _lora(path / "lora")
    if (path / "thinker").is_dir():
        about["thinker"] = {"parameters": _network(path / "thinker")["parameters"]}
    return about | {"token_space": _space(path / "token_space.json")}


def _space(path: Path) -> dict[str, Any]:
    """What a token_space.json says: its hash is checked against its content."""
    from muomni.tokens.space import TokenSpace

    space = TokenSpace.load(path.parent)
    regions = {region.name: f"{region.start}..{region.end}" for region in space.regions}
    codecs = {
        entry.modality: {key: value for key, value in entry.to_json().items() if value is not None}
        for entry in space.codecs
    }
    return {
        "kind": "token space",
        "hash": space.hash,
        "size": space.size,
        "regions": regions,
        "codecs": codecs,
    }


def _shards(path: Path) -> dict[str, Any]:
    """A set of token shards, by its index; `muomni data verify` looks into them."""
    index, made_of = files.read_json(path / "index.json"), files.read_json(path / "shards.json")
    sides = {
        side: {
            "samples": held["samples"],
            "shards": len(held["shards"]),
            "unreadable": held["bad"],
            "ids": held["ids"],
        }
        for side, held in index["sides"].items()
    }
    return {
        "kind": "token shards",
        "sides": sides,
        "settings": made_of["settings"],
        "token_space": _space(path / "token_space.json"),
    }


def _lora(path: Path) -> dict[str, Any]:
    """An adapter in PEFT's files."""
    config = files.read_json(path / "adapter_config.json")
    weights = _weights(path / "adapter_model.safetensors")
    settings = {"rank": config["r"], "alpha": config["lora_alpha"], "targets": config["target_modules"]}
    return {
        "kind": "lora",
        **settings,
        "parameters": weights["parameters"],
        "base": config.get("base_model_name_or_path"),
    }


def _with_manifest(path: Path) -> dict[str, Any]:
    """A training checkpoint (checked against its digests), or the data folder of another manifest.json."""
    manifest = files.read_json(path / "manifest.json")
    if "step" not in manifest or not isinstance(manifest.get("files"), dict):
        return {"kind": "data", "manifest": manifest}
    from muomni.train import checkpoint

    checkpoint.verify(path)
    weights = _weights(path / "weights.safetensors")
    return {"kind": "checkpoint", "step": manifest["step"], "files": sorted(manifest["files"])} | {
        key: weights[key] for key in ("parameters", "tensors")
    }


def _stage(path: Path) -> dict[str, Any]:
    certificate = files.read_json(path / "certificate.json")
    gates = {gate["name"]: gate["verdict"] for gate in certificate["gates"]}
    return {
        "kind": "stage",
        "verdict": certificate["verdict"],
        "gates": gates,
        "checkpoints": _checkpoints(path),
        "speed": _speed(path),
    }


def _speed(path: Path) -> dict[str, float]:
    """The last speed in metrics.jsonl, under its keys; empty if there is none."""
    lines = (
        (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if (path / "metrics.jsonl").is_file()
        else []
    )
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # the half-written last line of a killed run
            continue
        if "steps_per_s" in row:
            return {name: row[name] for name in units.METERS if name in row}
    return {}


def _is_stage(path: Path) -> bool:
    return any((path / name).is_file() for name in ("certificate.json", "metrics.jsonl", "config.yaml"))


def _verdict(path: Path) -> str | None:
    """green, red or waived; None where no certificate lies."""
    if not (path / "certificate.json").is_file():
        return None
    try:
        return str(files.read_json(path / "certificate.json")["verdict"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'certificate.json'}: torn: {error}", hint="run the stage again") from error


def _checkpoints(path: Path) -> list[str]:
    return [folder.name for folder in sorted(path.glob("step_*")) if folder.is_dir()]


def _sound(path: Path) -> dict[str, Any]:
    from muomni.media import audio

    about = audio.info(path)
    # Only the last second is decoded: a torn file fails there, and a long one costs no time.
    audio.decode(path, start_s=max(0.0, about.seconds - 1.0), allow_silent=True)
    return {
        "kind": "sound",
        "rate_hz": about.rate_hz,
        "channels": about.channels,
        "seconds": round(about.seconds, 3),
        "format": f"{about.form} {about.codec}",
    }


def _picture(path: Path) -> dict[str, Any]:
    from PIL import Image

    from muomni.media import image

    upright = image.read(path)
    with Image.open(path) as picture:
        return {
            "kind": "picture",
            "width": upright.width,
            "height": upright.height,
            "mode": picture.mode,
            "format": picture.format,
        }


def _jsonl(path: Path) -> dict[str, Any]:
    rows, keys = 0, list[str]()
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a JSON object: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            keys = keys or list(row)
            rows += 1
    return {"kind": "jsonl", "rows": rows, "keys": keys}


def _tokenizer(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    model, added = content["model"], content.get("added_tokens", [])
    vocabulary = (
        model["vocab"] if isinstance(model["vocab"], dict) else [piece for piece, _ in model["vocab"]]
    )  # Unigram has a list
    names = [token["content"] for token in added]
    return {
        "kind": "tokenizer",
        "type": model.get("type"),
        "vocab_size": len(set(vocabulary) | set(names)),
        "special": names,
    }


def _json(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    return (
        {"kind": "json", "keys": list(content)}
        if isinstance(content, dict)
        else {"kind": "json", "rows": len(content)}
    )


def _text(path: Path) -> dict[str, Any]:
    lines = characters = 0
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            lines, characters = lines + 1, characters + len(line)
    return {"kind": "text", "lines": lines, "characters": characters}
