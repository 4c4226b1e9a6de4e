"""Any number of ranks goes on where a run was, and one that fails takes the others with it, its reason told
and their state saved."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic import run_ranks
from safetensors.torch import load_file
from toy_training import losses

from muomni.data.order import Order
from muomni.evaluate import run_record_checks
from muomni.train import checkpoint
from muomni.train.run_record import Drawn

STEPS = 8
VALUES = {"max_steps": STEPS, "batch_size": 2, "val_freq": 3, "checkpoint_freq": 50}


def done(ranks: list[tuple[int, str]]) -> None:
    assert [code for code, _ in ranks] == [0] * len(ranks), "\n".join(said for _, said in ranks)[-4000:]


def counts(folder: Path) -> tuple[list[int], dict[str, int], dict[str, Any]]:
    found: tuple[list[int], dict[str, int], dict[str, Any]] = tuple(
        json.loads((folder / "drawn.json").read_text())
    )  # type: ignore[assignment]
    return found


def order_error(folder: Path, batch_size: int) -> float:
    counts_N, state, progress = counts(folder)
    drawn = Drawn(24, state, torch.tensor(counts_N).numpy().astype("uint16"))
    order = Order([24], batch_size=batch_size, seed=42)
    return run_record_checks.order(drawn, order, progress["samples"] + progress["quarantined"])[
        "order_error"
    ].value


def test_one_two_three_and_one_rank_go_on_as_one(tmp_path: Path) -> None:
    """The same global batch by 1 x 6, 2 x 3, 3 x 2 and 1 x 6: the losses of every step, dropout and a bad row
    included, to 1e-5."""
    whole = tmp_path / "whole"
    done(run_ranks(1, whole, values={**VALUES, "gradient_accumulation_steps": 6}))
    parts = tmp_path / "parts"
    for world, accumulate, stop in ((1, 6, 2), (2, 3, 2), (3, 2, 2), (1, 6, -1)):
        done(
            run_ranks(
                world, parts, values={**VALUES, "gradient_accumulation_steps": accumulate}, stop_before=stop
            )
        )
    one, other = losses(whole), losses(parts)
    assert [step for step, _ in one] == [step for step, _ in other]
    for (step, a), (_, b) in zip(one, other, strict=True):
        assert b == pytest.approx(a, abs=1e-5), step
    a, b = (load_file(folder / checkpoint.name(STEPS) / "weights.safetensors") for folder in (whole, parts))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, atol=1e-5, rtol=1e-5)
    assert counts(whole)[:2] == counts(parts)[:2]
    assert [world[1:] for world in counts(parts)[2]["worlds"]] == [[1, 6], [2, 6], [3, 6], [1, 6]]
    assert order_error(parts, 2) == 0


def test_more_ranks_with_a_larger_batch_pass_nothing_over(tmp_path: Path) -> None:
    """1, 2 and 1 ranks without another accumulation: two epochs of 12 batches end where the data end, each
    sample twice."""
    values = {"max_steps": 100, "max_epochs": 2, "batch_size": 2, "val_freq": 50, "checkpoint_freq": 50}
    for world, stop in ((1, 4), (2, 4), (1, -1)):
        done(run_ranks(world, tmp_path, values=values, stop_before=stop))
    counts_N, state, progress = counts(tmp_path)
    assert counts_N == [2] * 24
    assert state == {"total": 48, "batches": 24, "gaps": 0}
    assert progress["position"] == 24
    assert progress["step"] == 4 + 4 + 12
    assert progress["samples"] == 46
    assert progress["quarantined"] == 2
    assert order_error(tmp_path, 2) == 0


def test_ranks_that_resume_draw_the_random_numbers_of_those_that_did_not_stop(tmp_path: Path) -> None:
    """Two ranks with dropout, stopped and resumed: bit for bit, as one rank is."""
    values = {**VALUES, "max_steps": 5}
    done(run_ranks(2, tmp_path / "whole", values=values))
    done(run_ranks(2, tmp_path / "parts", values=values, stop_before=3))
    done(run_ranks(2, tmp_path / "parts", values=values))
    a, b = (
        load_file(tmp_path / name / checkpoint.name(5) / "weights.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- a rank fails -------------------------------------------------------------------------------------------------------------------------

LONG = {**VALUES, "max_steps": 30, "val_freq": 100}


@pytest.mark.parametrize(
    ("world", "told", "failing", "message"),
    [
        (3, {"rows": "failing"}, None, "the disk that holds row 5 is not mounted"),
        (
            2,
            {"rows": "bad", "values": {**LONG, "quarantine_limit": 0.2}},
            None,
            "expected at most 20.0% bad rows",
        ),
        (3, {"fail": ["raise", 1, 4]}, 1, "a kernel of this rank is broken"),
        (2, {"fail": ["raise", 0, 4]}, 0, "a kernel of this rank is broken"),
        (3, {"fail": ["kill", 2, 4]}, 2, "ended without a word"),
    ],
)
def test_a_rank_that_fails_ends_the_others_with_its_message(
    tmp_path: Path, world: int, told: dict[str, Any], failing: int | None, message: str
) -> None:
    """Not by the clock: a collective would wait for ten minutes, `run_ranks` for a third of that."""
    ranks = run_ranks(world, tmp_path, **{"values": LONG, **told})
    for rank, (code, said) in enumerate(ranks):
        assert code != 0
        if told.get("fail", [""])[0] == "kill" and rank == failing:
            assert code == -signal.SIGKILL
            continue
        assert message in said, (rank, said[-2000:])
    steps = [step for step, row in losses(tmp_path) if "lr" in row]
    if steps:  # the main rank has saved the last whole step, failing or not
        assert checkpoint.newest(tmp_path) == tmp_path / checkpoint.name(steps[-1])
    assert failing is None or steps == [1, 2, 3]


def test_what_was_saved_when_a_rank_failed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    values = {**VALUES, "max_steps": 6}
    run_ranks(2, tmp_path / "broken", values=values, fail=["kill", 1, 4])
    assert checkpoint.newest(tmp_path / "broken") == tmp_path / "broken" / checkpoint.name(3)
    done(run_ranks(2, tmp_path / "broken", values=values))
    done(run_ranks(2, tmp_path / "whole", values=values))
    a, b = (
        load_file(tmp_path / name / checkpoint.name(6) / "weights.safetensors")
        for name in ("whole", "broken")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_main_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    ranks = run_ranks(2, tmp_path, values=LONG, fail=["kill", 0, 3])
    assert ranks[0][0] == -signal.SIGKILL
    assert ranks[1][0] not in (0, -signal.SIGKILL)
    assert "ended without a word" in ranks[1][1]


def test_what_the_main_rank_does_alone_is_not_waited_for_in_a_collective(tmp_path: Path) -> None:
    """Saving takes twice as long as a collective may: golden answers at every checkpoint, say."""
    quick = {"MUOMNI_COLLECTIVE_TIMEOUT_S": "3"}
    done(
        run_ranks(
            2, tmp_path, values={**VALUES, "max_steps": 2, "warmup_steps": 0}, slow_s=6, environment=quick
        )
    )


def test_a_rank_that_hangs_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    quick = {"MUOMNI_COLLECTIVE_TIMEOUT_S": "3"}
    ranks = run_ranks(2, tmp_path, values=LONG, fail=["hang", 1, 3], environment=quick)
    assert ranks[0][0] != 0
    assert "hangs" in ranks[0][1]
    assert checkpoint.newest(tmp_path) == tmp_path / checkpoint.name(2)
