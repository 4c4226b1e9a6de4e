"""A big frozen part that comes from elsewhere: no checkpoint holds it, a resume is exact, another one in its
place is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from toy_training import CLASSES, CPU, RowBatch, Rows, Toy, collate, fit, losses, settings

from muomni import files
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import CheckpointError
from muomni.evaluate import soundness
from muomni.models import store
from muomni.train import checkpoint, frozen_parts, loop, optim
from muomni.train.objective import Term

WIDE = 2048
BASE_BYTES = 4 * (4 * WIDE + WIDE + 8 * WIDE)


class Seeing(Toy):
    """A pretrained base reads, a connector of a few weights learns to be read."""

    def __init__(self, *, seed: int = 1, drifts: bool = False, **how: Any) -> None:
        super().__init__(**how)
        base = nn.Sequential(nn.Linear(4, WIDE), nn.Tanh(), nn.Linear(WIDE, 8, bias=False))
        for number, parameter in enumerate(base.parameters()):
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * seed + number))
                * 0.1
            )
        self.base, self.drifts = optim.freeze(base), drifts
        self.mirror = nn.Linear(4, WIDE)
        self.mirror.weight = self.base[0].weight  # the same tensor, under a name outside of the part

    def frozen_parts(self) -> Sequence[str]:
        return ("base",)

    def forward(self, batch: RowBatch) -> dict[str, Term]:
        read = self.base(self.body(batch.x_BD)[:, :4])
        total = F.cross_entropy(
            self.head(read).view(-1, CLASSES), batch.y_BT.flatten(), ignore_index=-100, reduction="sum"
        )
        return {"nats": Term(total, self.counts(batch)["nats"])}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.drifts:
            with torch.no_grad():
                self.base[2].weight.add_(1e-3)


NAMES = {"base.0.weight", "base.0.bias", "base.2.weight", "mirror.weight"}
SELECTED = {"train": ["*", "!mirror.bias"]}


def written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_what_is_given_is_named_and_only_while_it_rests() -> None:
    objective = Seeing()
    assert frozen_parts.frozen_parameters(objective).keys() == NAMES
    assert frozen_parts.checkpoint_state(objective).keys() == objective.state_dict().keys() - NAMES
    objective.base[0].bias.requires_grad_(True)
    assert frozen_parts.frozen_parameters(objective).keys() == NAMES - {"base.0.bias"}
    assert frozen_parts.frozen_parameters(Toy()) == {}
    assert frozen_parts.checkpoint_state(Toy()).keys() == Toy().state_dict().keys()
    assert frozen_parts.digest(Toy()) == ""


def test_the_digest_is_of_the_bytes_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, other = Seeing(), Seeing(seed=2)
    first = frozen_parts.digest(objective)
    assert first == frozen_parts.digest(Seeing()) != frozen_parts.digest(other)
    reads: list[torch.Tensor] = []
    real = store.digest_of
    monkeypatch.setattr(store, "digest_of", lambda tensor: reads.append(tensor) or real(tensor))
    assert (
        frozen_parts.digest(frozen_parts.sharing_copy(objective)) == frozen_parts.digest(objective) == first
    )
    assert not reads
    with torch.no_grad():
        objective.base[0].bias[0] += 1
    assert frozen_parts.digest(objective) != first
    assert len(reads) == 1


def test_no_folder_of_a_run_holds_it(tmp_path: Path) -> None:
    fit(tmp_path, Seeing(), final="best", **SELECTED)
    held = frozen_parts.checkpoint_state(Seeing()).keys()
    folders = sorted(tmp_path.glob("step_*"))
    assert len(folders) == 2
    for folder in [*folders, tmp_path / "best"]:
        assert load_file(folder / "weights.safetensors").keys() == held
        assert written(folder) < 0.5 * BASE_BYTES
    assert len(files.read_json(folders[0] / "progress.json")["given"]) == 64


@pytest.mark.parametrize("how", [{}, {"ema_decay": 0.9}, {"final": "best", "val_freq": 2}])
def test_resume_and_restore_are_exact(tmp_path: Path, how: dict[str, Any]) -> None:
    whole, halves, how = Seeing(), Seeing(), {**how, **SELECTED}
    fit(tmp_path / "whole", whole, **how)

    class Cut(Exception):
        pass

    def dies(step: int) -> None:
        if step == 5:
            raise Cut

    with pytest.raises(Cut):
        fit(tmp_path / "halves", Seeing(dies=dies), **how)
    fit(tmp_path / "halves", halves, **how)
    assert store.digest(halves) == store.digest(whole)
    assert dict(losses(tmp_path / "halves"))[8] == dict(losses(tmp_path / "whole"))[8]
    restored = Seeing()
    loop.restore(restored, None, settings(**how), CPU, tmp_path / "whole")
    assert store.digest(restored) == store.digest(whole)
    assert store.digest(restored.base) == store.digest(Seeing().base)


def test_another_base_is_refused_and_left_alone(tmp_path: Path) -> None:
    fit(tmp_path, Seeing(), max_steps=3, **SELECTED)
    other = Seeing(seed=2)
    before = store.digest(other)
    with pytest.raises(CheckpointError, match=r"other given parts than these: base.0.weight"):
        fit(tmp_path, other, max_steps=8, **SELECTED)
    assert store.digest(other) == before
    unnamed = Seeing()
    unnamed.frozen_parts = lambda: ()  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="other given parts than these: none"):
        fit(tmp_path, unnamed, max_steps=8, **SELECTED)


def test_loading_is_strict_about_all_else(tmp_path: Path) -> None:
    objective = Seeing()
    state = checkpoint.State({"step": 3}, {}, {}, {})
    folder = tmp_path / checkpoint.name(3)

    def changed(alter: Any) -> None:
        checkpoint.save(folder, objective, state)
        tensors = load_file(folder / "weights.safetensors")
        alter(tensors)
        save_file(tensors, folder / "weights.safetensors")
        manifest = files.read_json(folder / "manifest.json")
        manifest["files"]["weights.safetensors"] = files.sha256_file(folder / "weights.safetensors")
        (folder / "manifest.json").write_text(json.dumps(manifest))

    changed(lambda tensors: tensors.pop("head.weight"))
    with pytest.raises(CheckpointError, match=r"missing head\.weight"):
        checkpoint.load(folder, Seeing(), CPU.device)
    changed(lambda tensors: tensors.update({"stranger": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="unexpected stranger"):
        checkpoint.load(folder, Seeing(), CPU.device)
    changed(lambda tensors: tensors.update({"base.0.bias": torch.zeros(WIDE)}))
    with pytest.raises(CheckpointError, match=r"unexpected base\.0\.bias"):
        checkpoint.load(folder, Seeing(), CPU.device)


def loader() -> Loader[Any, Any]:
    return Loader(Rows(), Order([24], batch_size=4, seed=0), collate)


def test_soundness_shares_it_and_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, chosen = Seeing(), settings(**SELECTED)
    optim.select(objective, chosen)
    before, copies = store.digest(objective), []
    real = frozen_parts.sharing_copy
    monkeypatch.setattr(frozen_parts, "sharing_copy", lambda one: copies.append(real(one)) or copies[-1])
    facts = soundness.examine(objective, loader(), chosen, CPU)
    assert len(copies) == 5
    for twin in copies:
        own, theirs = dict(twin.named_parameters()), dict(objective.named_parameters())
        assert {name for name in own if own[name].data_ptr() == theirs[name].data_ptr()} == NAMES - {
            "mirror.weight"
        }
    assert store.digest(objective) == before
    zero = ("reload_error", "unfrozen", "lost_gradients", "still_parameters")
    assert {name: facts[name].value for name in zero} == dict.fromkeys(zero, 0.0)
    assert facts["padding_error"].value < 1e-5


def test_a_given_part_that_moves_is_still_seen() -> None:
    objective, chosen = Seeing(drifts=True), settings(**SELECTED)
    optim.select(objective, chosen)
    unfrozen = soundness.examine(objective, loader(), chosen, CPU)["unfrozen"]
    assert (unfrozen.value, unfrozen.note) == (1.0, "base.2.weight")


def test_digests_read_tensors_as_they_are() -> None:
    made = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for tensor in (made, made.bfloat16(), made.T, made > 0, torch.zeros(()), torch.zeros(0, 2)):
        assert store.digest_of(tensor) == store.digest_of(tensor.clone())
    assert store.digest_of(made) != store.digest_of(made.T.contiguous())
    assert store.digest_of(made) != store.digest_of(made.view(torch.int32))
    one_bit = made.clone().view(torch.int32)
    one_bit[2, 4] ^= 1
    assert store.digest_of(made) != store.digest_of(one_bit.view(torch.float32))
    assert np.isfinite(made.numpy()).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("head.bias"), "missing head.bias"),
        (lambda state: state.update(stray=torch.ones(2)), "unexpected stray"),
        (
            lambda state: state.update({"head.bias": torch.ones(2)}),
            r"another shape head.bias \(expected \(15,\), got \(2,\)\)",
        ),
        (lambda state: state.update({"base.0.bias": torch.ones(WIDE)}), "unexpected base.0.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(tmp_path: Path, change: Any, told: str) -> None:
    """The loop's own `best/` is asked as strictly as a checkpoint: one lost tensor would be a network that
    nobody trained."""
    fit(tmp_path, Seeing(), final="best", **SELECTED)
    path = tmp_path / "best" / "weights.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    fresh = Seeing()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=told):
        frozen_parts.load_state(fresh, load_file(path), where="best")
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items()), (
        "all or nothing"
    )
    with pytest.raises(CheckpointError, match=told):
        loop.restore(Seeing(), None, settings(final="best", **SELECTED), CPU, tmp_path)


def test_what_a_start_leaves_behind_is_named() -> None:
    tensors = dict(frozen_parts.checkpoint_state(Seeing()))
    del tensors["head.bias"]
    tensors |= {"stray": torch.ones(1), "body.0.bias": torch.ones(3)}
    taken, left = frozen_parts.load_matching(Seeing(), tensors, where="there")
    assert taken == len(tensors) - 2
    assert (
        str(left)
        == "missing head.bias; unexpected stray; of another shape body.0.bias (expected (8,), got (3,))"
    )
    with pytest.raises(CheckpointError, match=r"there: no tensor fits this stage: missing"):
        frozen_parts.load_matching(Seeing(), {"stray": torch.ones(1)}, where="there")


def test_nothing_else_loads_loosely() -> None:
    """`strict=False` says nothing of what is missing, so it has one home that does."""
    package = Path(frozen_parts.__file__).parent.parent
    loose = [
        f"{path.relative_to(package)}:{number}"
        for path in package.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ".load_state_dict(" in line and "strict=False" in line
    ]
    assert [place.split(":")[0] for place in loose] == ["train/frozen_parts.py"] * 2
