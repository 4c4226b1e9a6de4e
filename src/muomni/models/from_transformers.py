"""Networks of transformers, opened strictly: from a folder alone, without network, without noise, nothing
drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muomni.errors import CheckpointError, ConfigError
from muomni.models import finite, store


@torch.inference_mode(False)  # opened below it by an engine, its parameters could never train
def open_network(
    folder: Path,
    name: str,
    what: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    config: Any = None,
    tensors: Mapping[str, Tensor] | None = None,
    is_whole: bool = False,
    **how: Any,
) -> nn.Module:
    """A network of transformers in evaluation mode.

    Takes   name of its class in transformers; what: its name for people; dtype None: as stored;
            config and tensors: those of a part, where the folder holds more than the network;
            is_whole: the folder must hold nothing that the network has no place for;
            how: arguments of the class beside its config.
    Raises  CheckpointError where the folder is torn, or lacks weights or holds some that are no numbers;
            ConfigError where the extra `hf` is not installed.
    """
    library = installed(folder, what)
    store.weight_files(folder)
    source = {"state_dict": dict(tensors)} if tensors is not None else {"local_files_only": True}
    try:
        with quiet():
            network, report = getattr(library, name).from_pretrained(
                None if tensors is not None else folder,
                config=config,
                dtype="auto" if dtype is None else dtype,
                output_loading_info=True,
                **source,
                **how,
            )
    except Exception as error:  # safetensors and transformers raise kinds of their own, none of them ours
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{folder} can't be opened as {name}: {why}") from error
    # transformers fills what a file lacks at random, and only warns.
    if absent := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
        raise CheckpointError(
            f"{folder} does not fit {name}: missing {', '.join(absent[:5])} ({len(absent)} in all)"
        )
    if is_whole and (odd := sorted(report["unexpected_keys"])):
        raise CheckpointError(
            f"{folder} does not fit {name}: it has no place for {', '.join(odd[:5])} ({len(odd)} in all)"
        )
    finite.demand_weights(network.state_dict(), folder)
    opened: nn.Module = network.to(device).eval()
    return opened


def installed(folder: Path, what: str) -> Any:
    """The library.

    Raises  ConfigError where it is not installed; it names what needs it.
    """
    try:
        import transformers
    except ImportError as error:
        message = f"{folder}: {what} needs transformers, which is not installed"
        raise ConfigError(message, hint="pip install 'muomni[hf]'") from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no table of weights that a part of a model rightly leaves unread."""
    from transformers import utils

    logging: Any = utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
