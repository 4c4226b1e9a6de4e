"""A tiny pretrained model learns to see, all the way: align and instruct over Qwen3 and both kinds of SigLIP,
and what they leave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeing_recipe
import torch
from safetensors.torch import load_file
from seeing_recipe import LIFTED, STEPS

import qwen
from muomni import cli, files
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.errors import CheckpointError, ConfigError, GateRed
from muomni.evaluate import certificate
from muomni.execution import recipe, runner
from muomni.infer.engine import Engine
from muomni.infer.prompt import Request
from muomni.train import loop
from shared import timeless

pytest.importorskip("transformers")
pytest.importorskip("peft")
STAGES = ("align", "instruct")
STRUCTURAL = {
    *(
        "terms",
        "padding",
        "accumulation",
        "gradient_reach",
        "all_learn",
        "frozen_rests",
        "reloads",
        "schedule",
        "finite",
        "updates",
    ),
    *(
        "label_coverage",
        "frozen",
        "leaks",
        "order",
        "ranks",
        "saved",
        "causality",
        "shift",
        "supervision",
        "ends_taught",
        "truncation",
    ),
    *("zero_labels", "media_reach"),
}
BUCKETS = ["short", "medium", "long"]


class Run:
    """A finished run of align and instruct, and where all that it stands on lies; `tokens` of the tokenizer,
    `rows` of the model."""

    def __init__(self, home: Path, words: int = seeing_recipe.WORDS) -> None:
        self.home, self.out, self.recipe = home, home / "run", home / "recipe.yaml"
        self.tokens, self.rows = words + qwen.ADDED, words + qwen.ROWS - qwen.BASE

    def final(self, stage: str) -> Path:
        return self.out / stage / "final"

    def samples(self, stage: str) -> readers.Corpus:
        """The samples of a stage, split as it split them."""
        settings = recipe.read(str(self.recipe)).stages[stage].settings
        quarantine = Quarantine(None, 1.0)
        return readers.load(
            settings.data,
            base=self.home,
            val_split=settings.val_split,
            seed=settings.seed,
            quarantine=quarantine,
        )


@pytest.fixture(scope="session")
def naflex(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Over SigLIP 2 and a Qwen3 in float32, tied, in one file."""
    run = Run(tmp_path_factory.mktemp("naflex"))
    seeing_recipe.write(run.recipe, seeing_recipe.recipe(run.home, "siglip2", "fp32"))
    os.environ["MUOMNI_PLAIN"] = "1"
    runner.run(str(run.recipe), out=run.out)
    return run


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Over SigLIP and a Qwen3 in bfloat16, untied, in shards; by the command line."""
    run = Run(tmp_path_factory.mktemp("fixed"))
    seeing_recipe.write(run.recipe, seeing_recipe.recipe(run.home, "siglip", "bf16"))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(run.recipe), "--out", str(run.out)])
    assert left.value.code == 0
    return run


@pytest.fixture(params=["naflex", pytest.param("fixed", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest) -> Run:
    """Each of both; it stands in the way of the fixture of untrained networks."""
    found: Run = request.getfixturevalue(request.param)
    return found


def pictures(run: Run) -> list[Path]:
    return sorted((run.home / "data" / "train2017").iterdir())


# --- what a stage leaves ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_structural_gates_are_green_at_their_own_bounds(run: Run, stage: str) -> None:
    found = certificate.read(run.out / stage)
    assert found is not None
    assert found["verdict"] == "green"
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert gates.keys() >= STRUCTURAL
    assert not STRUCTURAL & {*LIFTED, "language"}
    assert {name for name in STRUCTURAL if gates[name]["verdict"] != "green"} == set()
    facts = found["facts"]
    assert (
        facts["frozen_moved"]["n"] > 20
    )  # a digest for each tensor of the frozen networks, not none of none
    assert facts["image_swap_gap_nats"]["n"] == 6
    assert facts["label_tokens_mean"]["value"] > 4
    assert (
        sum(f"nats_{bucket}" in facts for bucket in BUCKETS) >= 2
    )  # which ones, the hash of the photos' names decides
    assert facts["text_bits_per_byte"]["value"] > 0
    if stage == "align":  # nothing that speaks has changed
        assert facts["forgetting_bits_per_byte"]["value"] == 0
    else:
        assert facts["forgetting_bits_per_byte"]["value"] != 0


def test_texts_to_measure_forgetting_by_are_asked_for_where_a_language_model_learns(
    naflex: Run, tmp_path: Path
) -> None:
    """Of a base of others, whose own texts nobody knows: align leaves it as it is, instruct teaches it."""
    runner.run(
        str(naflex.recipe),
        stages=["align"],
        out=tmp_path / "out",
        overrides=["align.regression=[]", "align.max_steps=2"],
    )
    found = files.read_json(tmp_path / "out" / "align" / "certificate.json")
    assert found["facts"]["regression_texts"]["value"] == 0
    assert not {"regression_texts", "language"} & {gate["name"] for gate in found["gates"]}
    with pytest.raises(GateRed, match=r"regression_texts.*nothing to measure forgetting by"):
        runner.run(
            str(naflex.recipe),
            stages=["instruct"],
            out=tmp_path / "out",
            overrides=[
                "align.regression=[]",
                "align.max_steps=2",
                "instruct.regression=[]",
                "instruct.connector=align",
            ],
        )
    assert not list((tmp_path / "out" / "instruct").glob("step_*"))
    assert not (tmp_path / "out" / "instruct" / "final").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_golden_items_and_splits_are_held_out(run: Run, stage: str) -> None:
    corpus = run.samples(stage)
    held_out, taught = {sample.id: sample for sample in corpus.valid}, {sample.id for sample in corpus.train}
    (path,) = (run.out / stage / "splits").iterdir()
    split = files.read_json(path)
    assert split["edges"] == [0, 10, 20]
    assert (split["seed"], split["size"]) == (3, 6)
    assert list(split["bucket_counts"]) == BUCKETS
    assert sum(split["bucket_counts"].values()) == len(split["eval"]) == 6
    assert sum(count > 0 for count in split["bucket_counts"].values()) >= 2
    ids = [row["id"] for row in split["eval"]]
    assert set(ids) <= held_out.keys() - taught
    assert not {image.path for i in ids for image in held_out[i].images} & {
        image.path for s in corpus.train for image in s.images
    }
    assert all(
        set(row) == {"id", "bucket", "label_len", "image"} and Path(row["image"]).is_file()
        for row in split["eval"]
    )
    dumped = sorted((run.out / stage / "golden").iterdir())
    assert [path.name for path in dumped] == [f"step_{step:06d}.jsonl" for step in range(2, STEPS + 1, 2)]
    for path in dumped:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["id"] for row in rows] == ids[:4]
        for row in rows:
            assert list(row) == ["id", "bucket", "prompt", "reference", "prediction", "hash"]
            assert row["reference"] == held_out[row["id"]].answer
            assert len(row["prompt"]) == len(held_out[row["id"]].messages) - 1
            assert row["prompt"][-1]["role"] == "user"
            assert row["hash"] == files.sha256_bytes(row["prediction"].encode())[:12]
    assert any(row["prediction"] for row in rows)


def test_final_holds_what_was_learned_and_nothing_of_the_frozen(run: Run) -> None:
    """The original's folders held the whole embedding and head (lumo C13)."""
    assert {
        str(path.relative_to(run.final("align"))) for path in run.final("align").rglob("*") if path.is_file()
    } == {
        "omni.json",
        "projectors/config.json",
        "projectors/model.safetensors",
    }
    added = {path.name for path in run.final("instruct").rglob("*") if path.is_file()}
    assert added == {
        "omni.json",
        "config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    lora = load_file(run.final("instruct") / "lora" / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in lora)
    assert any(bool(tensor.any()) for name, tensor in lora.items() if ".lora_B." in name)
    assert len(lora) == 2 * 7 * 2
    for stage in STAGES:
        assert weighs(run.final(stage)) < 200_000
        for path in run.final(stage).rglob("*.safetensors"):
            assert all(max(tensor.shape, default=0) < run.tokens for tensor in load_file(path).values()), (
                "a row for each token"
            )


def weighs(folder: Path) -> int:
    """Bytes of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_no_frozen_tensor(run: Run, stage: str) -> None:
    steps = sorted((run.out / stage).glob("step_*"))
    assert [step.name for step in steps] == ["step_000004", "step_000006"]
    for step in steps:
        names = set(load_file(step / "weights.safetensors"))
        assert any("projectors" in name for name in names)
        assert {name for name in names if "projectors" not in name and ".lora_" not in name} == set()
        assert any(".lora_" in name for name in names) == (stage == "instruct")
        assert sum(path.stat().st_size for path in step.iterdir()) < 1_000_000


def test_adapters_open_in_peft_over_the_base_as_it_was(run: Run) -> None:
    import peft
    import transformers

    base = transformers.Qwen3ForCausalLM.from_pretrained(run.home / "qwen3", dtype="auto")
    theirs = peft.PeftModel.from_pretrained(base, run.final("instruct") / "lora").eval()
    ids = torch.arange(40)[None] * 7 % 500
    with torch.no_grad():
        ours, expected = Engine.load(run.out, "cpu").logits(ids), theirs(ids).logits.float()
    assert ours.shape[-1] == run.rows
    # In bf16 they add the adapter to what the layer gives, we to its weight: single logits of six million
    # round apart, never all of them.
    far = 0.05 if base.dtype == torch.bfloat16 else 1e-4
    assert (ours - expected).square().mean().sqrt() < far * expected.square().mean().sqrt()
    if far < 1e-3:
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


# --- answers ------------------------------------------------------------------------------------------------------------------------------


def test_run_stage_and_final_answer_alike_about_a_picture(run: Run) -> None:
    picture = pictures(run)[3]
    for stage, folders in (
        ("instruct", [run.out, run.out / "instruct", run.final("instruct")]),
        ("align", [run.out / "align", run.final("align")]),
    ):
        said = [
            Engine.load(folder, "cpu").answer("what is it?", images=[picture], max_new=6)
            for folder in folders
        ]
        assert len({tuple(answer.token_ids) for answer in said}) == 1, stage
        assert said[0].token_ids


def test_answers_name_no_row_that_the_tokenizer_has_not(run: Run) -> None:
    names_no_other_row(Engine.load(run.out, "cpu"), run)


@pytest.mark.slow
def test_a_vocabulary_of_the_real_size(tmp_path: Path) -> None:
    """Qwen3's own numbers: 151,643 words, 26 added tokens, 151,936 rows."""
    run = Run(tmp_path, qwen.BASE)
    content = seeing_recipe.recipe(run.home, "siglip2", "fp32", qwen.BASE)
    content.pop("instruct")
    content["align"].update(batch_size=1, max_steps=1, warmup_steps=0, eval_items=2, watched_items=0)
    seeing_recipe.write(run.recipe, content)
    runner.run(str(run.recipe), out=run.out)
    engine = Engine.load(run.out / "align", "cpu")
    assert (run.tokens, run.rows) == (151_669, 151_936)
    assert engine.tokenizer.vocab_size == 151_669
    assert (
        weighs(run.final("align"))
        < 200_000
        < sum(path.stat().st_size for path in (run.home / "qwen3").glob("*.safetensors")) // 20
    )
    assert engine.logits(torch.arange(40)[None]).shape[-1] == 151_936
    assert engine.prepare(Request("which?", [pictures(run)[0]])).ids.count(151_655) == 4
    names_no_other_row(engine, run)


def names_no_other_row(engine: Engine, run: Run) -> None:
    assert engine.parts.thinker.config.vocab_size == run.rows
    head = (
        engine.parts.thinker.lm_head
        if engine.parts.thinker.lm_head is not None
        else engine.parts.thinker.model.embed_tokens
    )
    with torch.no_grad():
        head.weight[engine.tokenizer.vocab_size :] = head.weight[100] * 3  # louder than whatever has an id
        head.weight[engine.tokenizer.vocab_size + 1 :] *= -1
    said = engine.answer_many([Request("what?", [pictures(run)[0]]), "what?"], max_new=8)
    assert all(token < run.tokens for answer in said for token in answer.token_ids)


def test_a_batch_answers_as_each_would_alone(run: Run) -> None:
    """The original padded on the right and went on from a pad (lumo C4); several pictures, lengths and turns,
    in one batch."""
    engine, (one, two, three, *_) = Engine.load(run.out, "cpu"), pictures(run)
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "you are a helpful assistant."},
        {
            "role": "user",
            "content": [{"type": "image", "path": str(one)}, {"type": "text", "text": "what is it?"}],
        },
        {"role": "assistant", "content": "a kite"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "is this the same?"}, {"type": "image", "path": str(two)}],
        },
    ]
    requests = [
        Request("what?", [one]),
        Request("what is in the picture? describe it in detail, " * 3, [two]),
        Request("which of them is a dog?", [one, two, three]),
        Request("which of them is a dog?", [three, two, one]),
        talk,
        "what is a park?",
        Request(None, [three]),
    ]
    alone = [engine.answer_many([request], max_new=8)[0].token_ids for request in requests]
    streamed = [
        engine.answer(request.ask, images=request.images, max_new=8).token_ids
        for request in requests
        if isinstance(request, Request)
    ]
    assert streamed == [
        ids for ids, request in zip(alone, requests, strict=True) if isinstance(request, Request)
    ]
    assert len({tuple(ids) for ids in alone}) > 2
    if (
        engine.parts.thinker.model.embed_tokens.weight.dtype == torch.float32
    ):  # half precision rounds otherwise in other shapes
        assert [answer.token_ids for answer in engine.answer_many(requests, max_new=8)] == alone
        assert [answer.token_ids for answer in engine.answer_many(requests[::-1], max_new=8)] == alone[::-1]
    assert len({len(engine.prepare(request).ids) for request in requests}) >= 5


def test_the_order_of_pictures_is_the_order_of_their_places(run: Run) -> None:
    engine, (one, two, *_) = Engine.load(run.out, "cpu"), pictures(run)
    assert engine.parts.omni is not None
    there, back = (engine.prepare(Request("which?", pair)) for pair in ([one, two], [two, one]))
    assert there.ids == back.ids
    with torch.no_grad():
        x, y = (engine.read([prompt])[0][0] for prompt in (there, back))
        alone = [engine.read([engine.prepare(Request("which?", [picture]))])[0][0] for picture in (one, two)]
    mark = qwen.NAMES.index("<|image_pad|>") + run.tokens - qwen.ADDED
    pads = [place for place, i in enumerate(there.ids) if i == mark]
    assert len(pads) == 8
    first, second = pads[:4], pads[4:]
    own = [place for place, i in enumerate(engine.prepare(Request("which?", [one])).ids) if i == mark]
    torch.testing.assert_close(x[first], alone[0][own])
    torch.testing.assert_close(x[second], alone[1][own])
    torch.testing.assert_close(y[first], x[second])
    assert not torch.allclose(x[first], x[second])


# --- once more ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at"), [("align", 3), ("instruct", 4)])
def test_an_interrupted_stage_ends_with_the_same_bits(
    naflex: Run, stage: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if stage == "instruct":
        os.symlink(naflex.out / "align", out / "align")
    update, count = loop.update, 0

    def breaks(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise RuntimeError("pulled the plug")
        return update(*args, **more)

    monkeypatch.setattr(loop, "update", breaks)
    with pytest.raises(RuntimeError, match="plug"):
        runner.run(str(naflex.recipe), stages=[stage], out=out)
    monkeypatch.setattr(loop, "update", update)
    torch.manual_seed(99), np.random.seed(99)
    runner.run(str(naflex.recipe), stages=[stage], out=out)
    for file in sorted(naflex.final(stage).rglob("*.safetensors")):
        a, b = load_file(file), load_file(out / stage / "final" / file.relative_to(naflex.final(stage)))
        assert list(a) == list(b)
        assert all(a[key].equal(b[key]) for key in a), file.name
    whole, broken = certificate.read(naflex.out / stage), certificate.read(out / stage)
    assert whole is not None
    assert broken is not None
    assert timeless(whole["facts"]) == timeless(broken["facts"])
    for golden in (naflex.out / stage / "golden").iterdir():
        assert golden.read_text() == (out / stage / "golden" / golden.name).read_text()


def test_run_again_everything_is_reused(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")}
    monkeypatch.setattr(loop, "update", None)
    runner.run(str(run.recipe), out=run.out)
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")} == before
    assert capfd.readouterr().err.count("done before: reused") == 2


@pytest.mark.parametrize("part", ["qwen3", "eyes"])
def test_one_changed_byte_of_what_it_stands_on_is_refused(run: Run, part: str) -> None:
    path = sorted((run.home / part).glob("*.safetensors"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        for folder in (run.out, run.final("align"), run.final("instruct")):
            with pytest.raises(CheckpointError, match="other weights") as refused:
                Engine.load(folder, "cpu").answer("what is it?", images=[pictures(run)[0]], max_new=1)
            assert "\n" not in str(refused.value)
        with pytest.raises(ConfigError, match="weights of others that it stands on"):
            runner.run(str(run.recipe), out=run.out)
    finally:
        path.write_bytes(whole)
    assert Engine.load(run.out, "cpu").answer("what is it?", images=[pictures(run)[0]], max_new=1).token_ids


def test_a_folder_that_was_moved_finds_its_bases(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.final("instruct"), tmp_path / "elsewhere")
    said = [
        Engine.load(f, "cpu").answer("what?", images=[pictures(run)[0]], max_new=4).token_ids
        for f in (tmp_path / "elsewhere", run.out)
    ]
    assert said[0] == said[1]
