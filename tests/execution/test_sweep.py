"""The rule of a sweep: whoever does not look can't win, however low its loss; on made certificates, and in a
run with a blind point."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from muomni import files, runtime
from muomni.errors import ConfigError, GateRed
from muomni.evaluate import certificate
from muomni.evaluate.facts import Fact
from muomni.evaluate.samples import StageSamples
from muomni.execution import recipe, runner, winner
from muomni.infer.engine import Engine
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.stages import align, sweep
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200), "white": (225, 225, 225)}


def point(folder: Path, name: str, loss: float | None, swap: Fact | None, verdict: str = "green") -> str:
    """A point of a made-up sweep: its certificate, and a `final/` that names it."""
    facts = {"held_out_loss": Fact(math.nan if loss is None else loss)} | (
        {} if swap is None else {"image_swap_gap_nats": swap}
    )
    digests = dict.fromkeys(("weights", "data", "settings"), f"{name}'s")
    row = {
        "stage": name,
        "verdict": verdict,
        "gates": [],
        "facts": {key: fact.to_json() for key, fact in facts.items()},
        "modalities": [],
    }
    files.write_json(folder / "sweep" / name / certificate.NAME, {**row, **digests})
    files.write_text(folder / "sweep" / name / "final" / "name", name)
    return f"sweep/{name}"


def sure(gap: float) -> Fact:
    return Fact(gap, 64, (gap / 2, 2 * gap))


BLIND = Fact(0.02, 64, (-0.1, 0.2))


def picked(folder: Path, points: list[str]) -> list[dict[str, Any]]:
    return sweep.pick({point: certificate.read(folder / point) for point in points})


def winners(rows: list[dict[str, Any]]) -> list[str]:
    return [row["point"] for row in rows if row["wins"]]


# --- the rule -----------------------------------------------------------------------------------------------------------------------------


def test_the_lowest_loss_does_not_win_without_looking(tmp_path: Path) -> None:
    """lumo C16, A54: at 2e-4 the loss looked fine, and the picture was ignored."""
    points = [
        point(tmp_path, "lr-0.0002", 1.0, BLIND),
        point(tmp_path, "lr-0.0001", 2.0, sure(0.3)),
        point(tmp_path, "lr-5e-05", 1.5, sure(0.2)),
    ]
    rows = picked(tmp_path, points)
    assert [row["point"] for row in rows] == ["lr-5e-05", "lr-0.0001", "lr-0.0002"]
    assert [row["looks"] for row in rows] == [True, True, False]
    assert winners(rows) == ["lr-5e-05"]
    assert all(list(row) == list(sweep.COLUMNS) for row in rows)


@pytest.mark.parametrize(
    ("loss", "swap", "verdict"),
    [
        (0.1, Fact(0.0, 64, (0.0, 0.0)), "green"),  # pictures change nothing at all
        (0.1, Fact(0.5, 64, (-0.01, 1.0)), "green"),  # a large gap, but not surely one
        (0.1, Fact(-0.5, 64, (-0.6, -0.4)), "green"),  # other pictures are liked better
        (0.1, Fact(0.5, 2), "green"),  # no interval
        (0.1, None, "green"),  # not measured
        (0.1, Fact(math.nan, 0, (math.nan, math.nan)), "green"),
        (0.1, sure(0.5), "red"),  # whatever made it red
        (None, sure(0.5), "green"),  # looks, but nobody knows how well it speaks
        (math.inf, sure(0.5), "green"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_who_loses_to_a_worse_one_that_looks(
    tmp_path: Path, loss: float | None, swap: Fact | None, verdict: str, first: bool
) -> None:
    points = [point(tmp_path, "fine", 9.0, sure(0.2)), point(tmp_path, "odd", loss, swap, verdict)]
    rows = picked(tmp_path, points[::-1] if first else points)
    assert winners(rows) == ["fine"]
    assert rows[0]["point"] == "fine"
    json.loads(json.dumps(rows, allow_nan=False))


def test_a_waived_point_may_win_and_a_missing_one_never(tmp_path: Path) -> None:
    points = [
        point(tmp_path, "waived", 1.0, sure(0.2), "waived"),
        point(tmp_path, "fine", 2.0, sure(0.2)),
        "sweep/missing",
    ]
    rows = picked(tmp_path, points)
    assert winners(rows) == ["waived"]
    assert (rows[-1]["point"], rows[-1]["verdict"], rows[-1]["loss"], rows[-1]["looks"]) == (
        "missing",
        "missing",
        None,
        False,
    )


def test_of_equals_the_first_of_the_grid_wins(tmp_path: Path) -> None:
    points = [point(tmp_path, name, 1.0, sure(gap)) for name, gap in (("b", 0.1), ("a", 0.9), ("c", 0.5))]
    assert winners(picked(tmp_path, points)) == ["b"]


def test_the_order_of_the_table_is_the_rules_whatever_the_grids(tmp_path: Path) -> None:
    swaps = [sure(0.2), BLIND, None]
    losses = [0.5, 1.0, 1.5, 2.0, None, math.inf]
    points = [
        point(tmp_path, f"{i}-{j}", loss, swap)
        for i, loss in enumerate(losses)
        for j, swap in enumerate(swaps)
    ]
    wanted = [row["point"] for row in picked(tmp_path, points)]
    assert [name for name in wanted if name.endswith("-0")] == wanted[:6]
    assert wanted[:4] == ["0-0", "1-0", "2-0", "3-0"]
    for seed in range(10):
        rows = picked(tmp_path, random.Random(seed).sample(points, len(points)))
        assert [row["point"] for row in rows if row["loss"] is not None and row["eligible"]] == wanted[:4]
        losses_here = [
            row["loss"] if row["loss"] is not None else math.inf for row in rows if not row["eligible"]
        ]
        assert losses_here == sorted(losses_here)


# --- the end of a sweep -------------------------------------------------------------------------------------------------------------------


def made_recipe(home: Path, **grid: Any) -> Path:
    """A recipe whose stages are never built."""
    (home / "data.jsonl").write_text("")
    common = {"data": [{"path": str(home / "data.jsonl")}], "llm": "qwen3", "vision_tower": "siglip"}
    content = {"device": "cpu", "align": common, "sweep": {"grid": grid}}
    path = home / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_where_nobody_looks_the_gate_is_red_and_nothing_is_handed_on(tmp_path: Path) -> None:
    plan = recipe.read(str(made_recipe(tmp_path, lr=[1e-4, 2e-4])), out=tmp_path)
    for name in ("lr-0.0001", "lr-0.0002"):
        point(tmp_path, name, 0.1, BLIND)
    files.write_text(tmp_path / "sweep" / "final" / "name", "the winner of an earlier sweep")
    with pytest.raises(GateRed, match=r"winner.*not what pictures show"):
        winner.conclude(plan, plan.stages["sweep"], runtime.start(device="cpu"), fresh=False, waived={})
    found = certificate.read(tmp_path / "sweep")
    assert found is not None
    assert found["verdict"] == "red"
    assert [(gate["name"], gate["verdict"]) for gate in found["gates"]] == [
        ("bases", "green"),
        ("winner", "red"),
    ]
    assert (found["facts"]["eligible"]["value"], found["facts"]["eligible"]["n"]) == (0.0, 2)
    assert winners(files.read_json(tmp_path / "sweep" / winner.TABLE)) == []
    assert not (tmp_path / "sweep" / "final").exists()
    with pytest.raises(GateRed, match="refuses to build on sweep"):
        certificate.demand(tmp_path / "sweep", "instruct")


def test_points_have_folders_of_their_own(tmp_path: Path) -> None:
    """The original's six runs wrote into one folder (lumo C16)."""
    eyes = ["google/siglip2-base", "google/siglip-base"]
    plan = recipe.read(
        str(
            made_recipe(
                tmp_path,
                vision_tower=eyes,
                connector={"vision_ln": [False, "trained"]},
                feature_layers=[[], [0, 2]],
            )
        )
    )
    points = plan.stages["sweep"].needs
    assert len(points) == len(set(points)) == 8
    settings_of_points: list[Any] = [plan.stages[name].settings for name in points]
    assert all(name.count("/") == 1 and not set(name) & set(" ,[]'") for name in points)
    assert {
        (settings.vision_tower.name, settings.connector.vision_ln) for settings in settings_of_points
    } == {(e, ln) for e in eyes for ln in ("off", "trained")}
    with pytest.raises(ConfigError, match="a/b"):
        recipe.read(str(made_recipe(tmp_path, vision_tower=["a/b", "a-b"])))


# --- a world in which the picture matters -------------------------------------------------------------------------------------------------


def colour_world(home: Path) -> Path:
    """Pictures of one colour with captions that name it, a frozen random language model and eyes, and a sweep
    of two points over them."""
    torch.manual_seed(8)
    tokenizer = Tokenizer.train([f"what colour? it is {colour}" for colour in COLOURS] * 9, 298)
    sizes = {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "ffn_width": 64,
        "ctx_len": 64,
        "dropout": 0.0,
        "tied": False,
    }
    decoder = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **sizes))
    with torch.no_grad():  # blocks loud enough that what is read is heard at the end
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 2 and ".layers." in name:
                parameter.normal_(std=0.2)
        assert decoder.lm_head is not None
        decoder.lm_head.weight.normal_(std=0.3)
    store.save(decoder, home / "llm")
    tokenizer.save(home / "llm")
    store.save(
        VisionEncoder(
            VisionEncoderConfig(
                image_size=32, patch_size=16, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8
            )
        ),
        home / "eyes",
    )
    rng, rows = np.random.default_rng(0), []
    (home / "pictures").mkdir()
    for number in range(240):
        colour, name = list(COLOURS)[number % 4], f"pictures/{number:03d}.png"
        pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 20, (8, 8, 3)), 0, 255).astype(
            np.uint8
        )
        Image.fromarray(pixels).save(home / name)
        turns = [
            {"from": "human", "value": "<image>\nwhat colour?"},
            {"from": "gpt", "value": f"it is {colour}"},
        ]
        rows.append({"id": f"{number:03d}", "image": name, "conversations": turns})
    (home / "colours.json").write_text(json.dumps(rows))
    (home / "words.txt").write_text(
        "".join(f"what colour? it is {list(COLOURS)[number % 4]}\n" for number in range(24))
    )
    unlearned = (
        "overfits",
        "image_swap_gap",
        "image_swap_share",
        "image_swap_sure",
        "image_swap_wins",
        "image_zero_sure",
        "image_noise_sure",
    )
    common = {
        "data": [{"path": str(home / "colours.json"), "format": "llava"}],
        "regression_texts": [{"path": str(home / "words.txt")}],
        "max_seq_len": 64,
        "batch_size": 16,
        "max_steps": 2,
        "warmup_steps": 1,
        "val_split": 0.3,
        "eval_items": 64,
        "watched_items": 0,
        "val_freq": 1000,
        "checkpoint_freq": 1000,
        "gates": {gate: 9.0 if gate == "overfits" else -99.0 for gate in unlearned},
    }
    content = {
        "seed": 1,
        "threads": 1,
        "device": "cpu",
        "align": {
            **common,
            "llm": str(home / "llm"),
            "vision_tower": str(home / "eyes"),
            "connector": {"tokens": 2, "width": 16, "heads": 2, "depth": 1, "mlp_ratio": 1.0},
            "lr": 0.02,
        },
        "sweep": {"grid": {"max_steps": [2, 3]}},
        "instruct": {**common, "lora": {"r": 2, "alpha": 4}},
    }
    path = home / "colours.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_blind_point_speaks_better_and_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = colour_world(tmp_path)

    class Planted(align.AlignTraining):
        """The longer run speaks better and does not look, by the facts that it measures: no training has to
        come out so."""

        def measure(self, fitted: Fitted, album: StageSamples) -> dict[str, Fact]:
            swap, loss = (BLIND, 1.0) if self.settings.max_steps == 3 else (sure(0.3), 2.0)
            return {
                **super().measure(fitted, album),
                "image_swap_gap_nats": swap,
                "held_out_loss": Fact(loss, 72),
            }

    monkeypatch.setattr(sweep, "SWEPT", replace(align.STAGE, training=Planted))
    out = tmp_path / "run"
    runner.run(str(world), stages=["sweep", "instruct"], out=out)
    first, second = files.read_json(out / "sweep" / "table.json")
    assert (first["point"], first["wins"], first["looks"]) == ("max_steps-2", True, True)
    assert (second["point"], second["wins"], second["looks"]) == ("max_steps-3", False, False)
    assert second["loss"] < first["loss"]  # by loss alone it would have won
    assert second["verdict"] == first["verdict"] == "green"  # and nothing else told
    assert second["swap_gap_low"] <= 0 < first["swap_gap_low"]
    found, of_winner = certificate.read(out / "sweep"), certificate.read(out / "sweep" / "max_steps-2")
    assert found is not None
    assert of_winner is not None
    assert {gate["name"]: gate["verdict"] for gate in found["gates"]}["winner"] == "green"
    assert (found["weights"], found["facts"]["eligible"]["value"]) == (of_winner["weights"], 1.0)
    final = {
        path.relative_to(out / "sweep" / "final"): path.read_bytes()
        for path in (out / "sweep" / "final").rglob("*")
        if path.is_file()
    }
    assert final
    assert all(
        (out / "sweep" / "max_steps-2" / "final" / name).read_bytes() == content
        for name, content in final.items()
    )
    picture = tmp_path / "pictures" / "000.png"
    said = [
        Engine.load(place, "cpu").answer("what colour?", images=[picture], max_new=4)
        for place in (out / "sweep", out / "sweep" / "final")
    ]
    assert said[0].token_ids == said[1].token_ids
    assert said[0].token_ids
    bases = [files.read_json(out / stage / "final" / "omni.json")["bases"] for stage in ("sweep", "instruct")]
    assert bases[0] == bases[1]  # instruct goes on from the winner
    assert Engine.load(out, "cpu").answer("what colour?", images=[picture], max_new=4).token_ids
