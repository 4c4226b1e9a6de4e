"""Two ranks with half the vectors each learn the codebooks that one rank learns from all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from muomni.nn.rvq import ResidualVQ

pytestmark = pytest.mark.slow


def learn(z_MD: torch.Tensor) -> ResidualVQ:
    torch.manual_seed(0)
    quantiser = ResidualVQ(2, 8, 4, revive_below=0.0).train()
    for _ in range(3):
        quantiser(z_MD[None])
        quantiser.update(torch.Generator().manual_seed(0))
    return quantiser


def vectors() -> torch.Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2
    )
    torch.save(learn(vectors()[number::2]).codebooks_KND, f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, learn(vectors()).codebooks_KND)
