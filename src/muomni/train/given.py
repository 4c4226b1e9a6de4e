"""Parts that come whole from another place (a pretrained LLM) and rest: checkpoints leave them out, trial copies share them."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from muomni import files
from muomni.models import store
from muomni.train.objective import Objective

# Parameter -> (its version, its digest): 16 GB are read once a run, not once a checkpoint.
_DIGESTS: MutableMapping[Tensor, tuple[int, str]] = WeakTensorKeyDictionary()


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """The frozen parameters of the parts that an objective names as `given`, under every name that they have; none of another module."""
    parts = model.given() if isinstance(model, Objective) else ()
    resting = {id(p) for part in parts for p in model.get_submodule(part.rstrip(".")).parameters() if not p.requires_grad}
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if id(p) in resting}


def beside(model: nn.Module) -> dict[str, Tensor]:
    """The state beside them: what a checkpoint must hold."""
    left_out = frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def digest(model: nn.Module) -> str:
    """sha256 over their names and bytes, empty where there are none."""
    digests = {}
    for name, parameter in frozen(model).items():
        version, known = _DIGESTS.get(parameter, (-1, ""))
        if version != parameter._version:  # every change in place counts it up
            known = store.digest_of(parameter)
            _DIGESTS[parameter] = parameter._version, known
        digests[name] = known
    return files.sha256_json(digests) if digests else ""


def sharing_copy(objective: Objective) -> Objective:
    """A copy for trials that holds these very parameters, and its own of all else."""
    return copy.deepcopy(objective, {id(parameter): parameter for parameter in frozen(objective).values()})
