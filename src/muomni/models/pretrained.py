"""Weights that others trained: found, named by their digest, and opened as our decoder and eyes without a
copy."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from muomni import files
from muomni.errors import CheckpointError, ConfigError
from muomni.models import siglip, store
from muomni.models.decoder import Decoder
from muomni.models.vision_tower import VisionTower
from muomni.runtime import format_name
from muomni.tokens.bpe import Tokenizer

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # never a pickle


def locate(name: str, revision: str | None, base: Path) -> Path:
    """The folder of a model: a folder by this name, or a snapshot of the Hugging Face hub.

    Takes   name a folder, relative to `base` or else to the working folder, or a hub id (owner/name);
            revision of the hub, None: main. With HF_HUB_OFFLINE=1 the hub's cache alone is asked.
    Raises  ConfigError where it is neither, is not in the cache while offline, or the extra `hf` is not
            installed.
    """
    for folder in folders(name, base):
        if name and folder.is_dir():
            return folder
    if not HUB_ID.fullmatch(name) or name.startswith((".", "-")):
        raise ConfigError(
            f"model {name!r}: expected a folder or a hub id (owner/name), found no such folder",
            hint=f"looked in {base}",
        )
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"model {name!r}: no such folder, and hub ids need huggingface_hub",
            hint="pip install 'muomni[hf]', or give a folder",
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (
        OSError,
        ValueError,
    ) as error:  # what the hub raises: no such repo, no network, not in the cache, no valid id
        is_offline = constants.HF_HUB_OFFLINE
        where = "the hub's cache (HF_HUB_OFFLINE is set)" if is_offline else "the hub"
        way = (
            f"unset HF_HUB_OFFLINE, or run 'hf download {name}' first"
            if is_offline
            else (str(error).strip() or repr(error)).splitlines()[0]
        )
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"model {name!r}{at}: no such folder below {base}, and not found in {where}", hint=way
        ) from error


def folders(name: str, base: Path) -> tuple[Path, Path]:
    """Where a model of this name lies if it is a folder: relative to `base`, or else to the working
    folder."""
    return base / Path(name).expanduser(), Path(name).expanduser()


def digest(folder: Path | str) -> str:
    """sha256 that names a folder's model: its config and the whole content of its weight files.

    Raises  CheckpointError where config or weights are missing.
    """
    folder = Path(folder)
    store.read_config(folder)
    return files.sha256_json(
        [
            [path.name, files.sha256_once(path)]
            for path in (folder / store.CONFIG, *store.weight_files(folder))
        ]
    )


def open_decoder(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Decoder:
    """A Qwen3 checkpoint or a Thinker of ours in evaluation mode, its weights mapped from the files.

    Its vocabulary is that of its table, however few of the rows its tokenizer uses.

    Takes   dtype None: as stored.
    Raises  CheckpointError where the folder holds another model or a torn one.
    """
    model = store.load(folder, device, dtype="stored" if dtype is None else dtype)
    if not isinstance(model, Decoder):
        raise CheckpointError(
            f"{folder}: expected a decoder (model_type {Decoder.model_type}), got a {type(model).__name__}"
        )
    tell_widened(folder, dtype)
    return model


def open_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer beside a language model; its table may have more rows than the tokenizer has ids, never
    less.

    Raises  CheckpointError as `Tokenizer.load`, or where an id has no row.
    """
    folder = Path(folder)
    tokenizer = Tokenizer.load(folder)
    rows = store.read_config(folder).get("vocab_size")
    if isinstance(rows, int) and tokenizer.num_ids > rows:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.num_ids} ids, its embedding table only {rows} rows",
            hint="put the tokenizer of these weights beside them, or let transformers add the rows: model.resize_token_embeddings(N)",
        )
    return tokenizer


def open_tower(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VisionTower:
    """Eyes of ours or SigLIP's in evaluation mode; dtype None: as stored.

    Raises  CheckpointError where the folder holds neither or is torn; ConfigError where SigLIP's extra is not
            installed.
    """
    folder = Path(folder)
    if store.read_config(folder).get("model_type") in siglip.CLASSES:
        model = siglip.SiglipTower.open(folder, device, dtype)
    else:
        model = store.load(folder, device, dtype="stored" if dtype is None else dtype)
    if not isinstance(model, VisionTower):
        raise CheckpointError(
            f"{folder}: expected a vision tower (ours or SigLIP), got a {type(model).__name__}"
        )
    tell_widened(folder, dtype)
    return model


def tell_widened(folder: Path | str, dtype: torch.dtype | None) -> None:
    """Say, once, that a network is opened in float32 though it is stored in half precision: it takes twice
    the memory."""
    stored = store.stored_format(folder)
    if dtype == torch.float32 and stored.itemsize < dtype.itemsize:
        store.say_once(
            f"{folder} is stored in {format_name(stored)} and opened in float32, which is faster here (dtype: bf16 keeps it)"
        )


def save_tower(tower: VisionTower, folder: Path | str) -> None:
    """Write a tower as a folder that `open_tower` opens, and transformers too if it is theirs."""
    if isinstance(tower, siglip.SiglipTower):
        tower.save(Path(folder))
    else:
        store.save(tower, folder)
