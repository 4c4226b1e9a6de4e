"""A model that is handed on answers as it did, needs nothing of where it came from, and is refused where it
proved nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import cli, files
from muomni.data.sample import Message
from muomni.errors import CheckpointError
from muomni.infer.engine import Engine
from muomni.infer.export import say_where_to_stop
from muomni.models import lora, pretrained, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.reference import NetworkReference
from muomni.models.siglip import SiglipTower
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer
from seeing_run import certify, save_bases, save_qwen, save_siglip, save_stage

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
Export = Callable[..., tuple[int, str]]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Export:
    """`muomni export` in this process: exit code and standard error."""

    def call(*args: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["export", *map(str, args)])
        return int(left.value.code or 0), capsys.readouterr().err.strip()

    return call


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """align and instruct on the thinker and vision of their run."""
    run = tmp_path / "own"
    save_bases(run)
    for name in ("align", "instruct"):
        save_stage(
            run,
            name,
            NetworkReference(name="thinker"),
            NetworkReference(name="vision"),
            with_lora=name == "instruct",
        )
    return run


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """align and instruct on a Qwen3 and a SigLIP in folders beside the run."""
    run = tmp_path / "others"
    save_qwen(run / "qwen")
    save_siglip(run / "siglip")
    for name in ("align", "instruct"):
        save_stage(
            run,
            name,
            NetworkReference(name="qwen"),
            NetworkReference(name="siglip"),
            with_lora=name == "instruct",
        )
    return run


def answers(folder: Path, media: Path) -> list[list[int]]:
    engine = Engine.load(folder, "cpu")
    red, blue = media / "red.png", media / "blue.png"
    asked = [
        ("what is it", [red]),
        ("what is it", [blue]),
        ("left of", [red, blue]),
        ("the red circle", []),
        (None, [blue]),
    ]
    return [list(engine.answer(text, images=images, max_new=12).token_ids) for text, images in asked]


@pytest.mark.parametrize("stage", ["align", "instruct", "."])
@pytest.mark.parametrize("made", ["own", "others"])
def test_what_is_exported_answers_as_the_run_does_when_the_run_is_gone(
    request: pytest.FixtureRequest, export: Export, media: Path, tmp_path: Path, made: str, stage: str
) -> None:
    run = request.getfixturevalue(made)
    told = answers(run / stage, media)
    assert len({tuple(each) for each in told}) > 3
    assert export(run / stage, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    source = run / ("thinker/final" if made == "own" else "qwen")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / "thinker" / name).read_bytes() == (source / name).read_bytes()
    shutil.rmtree(run)
    moved = shutil.move(tmp_path / "out", tmp_path / "moved" / "model")
    assert answers(moved, media) == told
    for path in Path(moved).rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    assert not any(path.is_symlink() for path in Path(moved).rglob("*"))
    content = files.read_json(Path(moved) / "omni.json")
    assert "bases" not in content
    assert content["origin"]["stage"] == ("instruct" if stage == "." else stage)
    assert set(content["origin"]["bases"]) == {"thinker", "vision"}
    assert (
        export(moved, "--to", "omni", "--out", tmp_path / "again")[0] == 0
    )  # what was handed on can be handed on
    assert answers(tmp_path / "again", media) == told
    assert files.read_json(tmp_path / "again" / "omni.json")["origin"] == content["origin"]


@pytest.mark.parametrize("made", ["own", "others"])
def test_transformers_and_peft_open_what_is_exported_for_them(
    request: pytest.FixtureRequest, export: Export, tmp_path: Path, made: str
) -> None:
    run, out = request.getfixturevalue(made), tmp_path / "hf"
    assert export(run, "--to", "hf", "--out", out)[0] == 0
    base = run / ("thinker/final" if made == "own" else "qwen")
    ids = torch.randint(15, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    unmerged = lora.load(pretrained.open_decoder(base), out / "lora")
    with torch.no_grad():
        ours = unmerged.eval()(ids)
        plain = pretrained.open_decoder(base)(ids)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()(ids).logits
        by_peft = pytest.importorskip("peft").PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(base), out / "lora"
        )
        assert (by_peft.eval()(ids).logits - ours).abs().max() <= 1e-4
    assert (theirs - ours).abs().max() <= 1e-4
    assert (plain - ours).abs().max() > 0.1
    assert (Engine.load(out, "cpu").logits(ids) - ours).abs().max() <= 1e-4
    assert (out / "vision").is_dir() == (made == "others")
    if made == "others":
        assert (
            transformers.AutoConfig.from_pretrained(out).eos_token_id
            == files.read_json(base / "config.json")["eos_token_id"]
        )
        assert transformers.SiglipVisionModel.from_pretrained(out / "vision").config.image_size == 32
        assert isinstance(pretrained.open_tower(out / "vision"), SiglipTower)
        assert len(transformers.AutoTokenizer.from_pretrained(out)("the red").input_ids) > 0


def test_a_base_in_bf16_stays_in_bf16(export: Export, others: Path, media: Path, tmp_path: Path) -> None:
    half = pretrained.open_decoder(others / "qwen").to(torch.bfloat16)
    from muomni.models import store

    store.save(half, others / "half")
    files.write_json(
        others / "half" / "config.json",
        {**files.read_json(others / "half" / "config.json"), "dtype": "bfloat16"},
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(others / "qwen" / name, others / "half" / name)
    final = save_stage(
        others, "instruct", NetworkReference(name="half"), NetworkReference(name="siglip"), with_lora=True
    )
    assert export(final, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    assert {each.dtype for each in pretrained.open_decoder(tmp_path / "out" / "thinker").parameters()} == {
        torch.bfloat16
    }
    assert files.read_json(tmp_path / "out" / "thinker" / "config.json")["dtype"] == "bfloat16"
    assert answers(tmp_path / "out", media) == answers(final, media)


def test_stage_thinker_is_its_folder(export: Export, own: Path, tmp_path: Path) -> None:
    assert export(own / "thinker", "--to", "hf", "--out", tmp_path / "out")[0] == 0
    for path in (own / "thinker" / "final").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


# Where transformers stops


DIALOGUE = [("say one", "the red circle"), ("say two", "the blue square is left of it"), ("say three", "of")]


def taught(folder: Path, tokenizer: Tokenizer, rows: int) -> Decoder:
    """A decoder that has learned DIALOGUE by heart, and to stop, saved in a folder; transformers' own default
    is 20 ids in all."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "width": 48,
        "layers": 1,
        "heads": 2,
        "ffn_width": 64,
        "ctx_len": 128,
        "dropout": 0.0,
    }
    decoder = Decoder(DecoderConfig(vocab_size=rows, **sizes))
    said = [
        chat.render(
            tokenizer, [Message(role="user", content=asked), Message(role="assistant", content=answer)]
        )
        for asked, answer in DIALOGUE
    ]
    optimizer = torch.optim.AdamW(decoder.parameters(), 3e-3)
    for _ in range(160):
        for row in said:
            loss = torch.nn.functional.cross_entropy(
                decoder(torch.tensor([row.ids[:-1]]))[0], torch.tensor(row.labels[1:])
            )
            loss.backward()
        optimizer.step(), optimizer.zero_grad()
    assert loss.item() < 0.1
    store.save(decoder, folder)
    return decoder


def answers_in_transformers(folder: Path) -> None:
    """By `generate` and the pipeline, both with their default arguments: each answer ends with the end of its
    turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    write = transformers.pipeline("text-generation", model=str(folder))
    for asked, answer in DIALOGUE:
        turns = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == answer
        assert int(new[-1]) == tokenizer.eos_token_id
        assert write(turns)[0]["generated_text"][-1]["content"].strip() == answer
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("is_older", [True, False])
def test_an_exported_thinker_answers_and_stops_in_transformers(
    export: Export, tmp_path: Path, is_older: bool
) -> None:
    run = tmp_path / "run"
    tokenizer = Tokenizer.train([text for pair in DIALOGUE for text in pair] * 3, 300)
    decoder = taught(run / "thinker" / "final", tokenizer, tokenizer.vocab_size)
    tokenizer.save(run / "thinker" / "final", decoder.config.ctx_len)
    if is_older:  # a folder of a version that named the end of a document
        (run / "thinker" / "final" / "generation_config.json").unlink()
        path = run / "thinker" / "final" / "tokenizer_config.json"
        files.write_json(path, {**files.read_json(path), "eos_token": "<|eos|>", "model_max_length": 10**30})
    certify(run / "thinker")
    assert export(run, "--to", "hf", "--out", tmp_path / "out")[0] == 0
    answers_in_transformers(tmp_path / "out")
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length
        == decoder.config.ctx_len
    )
    ids = torch.randint(0, tokenizer.vocab_size, (2, 20))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
    assert (theirs - Engine.load(tmp_path / "out", "cpu").logits(ids)).abs().max() <= 1e-4
    engine = Engine.load(tmp_path / "out", "cpu")
    assert [engine.answer(asked).text for asked, _ in DIALOGUE] == [answer for _, answer in DIALOGUE]
    assert engine.tokenizer.special_tokens.stops == (7, 2)


@pytest.mark.parametrize(
    "spelled", ["<|endoftext|>", {"content": "<|endoftext|>", "__type": "AddedToken"}, "<|im_end|>", None]
)
@pytest.mark.parametrize("ends", ["both", "document", None])
def test_a_base_model_of_others_stops_where_its_turns_end(
    tmp_path: Path, spelled: Any, ends: str | None
) -> None:
    """Qwen3's base models name the end of a document alone: taught to answer in turns, they would write on
    after each."""
    save_qwen(tmp_path / "qwen")
    tokenizer = Tokenizer.load(tmp_path / "qwen")
    turn, document = tokenizer.special_tokens.stops
    folder, is_asked = (
        tmp_path / "out",
        ends != "both" and isinstance(spelled, str) and spelled != "<|im_end|>",
    )
    if is_asked:
        taught(folder, tokenizer, tokenizer.num_ids + 6)
    else:
        shutil.copytree(tmp_path / "qwen", folder)
    shutil.copyfile(tmp_path / "qwen" / "tokenizer.json", folder / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": spelled, "chat_template": CHATML}
    files.write_json(folder / "tokenizer_config.json", config)
    files.write_json(folder / "special_tokens_map.json", {"eos_token": spelled} if spelled else {})
    named = {"both": [turn, document], "document": document, None: None}[ends]
    files.write_json(
        folder / "generation_config.json",
        {"max_length": 100, **({} if named is None else {"eos_token_id": named})},
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    say_where_to_stop(folder)
    assert (before["generation_config.json"] == (folder / "generation_config.json").read_bytes()) == (
        ends == "both"
    )
    assert (before["tokenizer_config.json"] == (folder / "tokenizer_config.json").read_bytes()) == (
        spelled == "<|im_end|>"
    )
    assert before["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    assert set(transformers.GenerationConfig.from_pretrained(folder).eos_token_id) == {turn, document}
    if is_asked:
        answers_in_transformers(folder)


def said(folder: Path) -> list[list[float]]:
    """Waves of two texts, and of an answer that is spoken."""
    engine = Engine.load(folder, "cpu")
    waves = [wave for wave, _ in engine.speak(["the red circle", "left of"])]
    spoken = engine.answer("the red circle", max_new=4, speak=True).audio
    return [wave.tolist() for wave in [*waves, *([] if spoken is None else [spoken[0]])]]


@pytest.fixture
def whole(run: Path, tmp_path: Path) -> Path:
    """A run of all stages that a test may spoil, its omni and talker proven."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    certify(copy / "omni")
    certify(copy / "talker")
    return copy


def test_stage_omni_brings_its_parts_and_the_run_its_voice(
    export: Export, whole: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, aloud = answers(whole, media), said(whole)
    assert export(whole / "omni", "--to", "omni", "--out", tmp_path / "mute")[0] == 0
    assert not (tmp_path / "mute" / "talker").exists()
    assert export(whole, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    shutil.rmtree(whole)
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "moved"))
    capsys.readouterr()
    assert answers(moved, media) == told
    assert answers(tmp_path / "mute", media) == told
    assert said(moved) == aloud
    assert capsys.readouterr().err == "", "all of it is proven"
    assert (moved / "hearing").is_dir()
    assert files.read_json(moved / "omni.json")["origin"]["voice"] == {
        "stage": "talker",
        "verdict": "green",
        "weights": "ab" * 32,
    }
    assert (
        export(moved, "--to", "omni", "--out", tmp_path / "again")[0] == 0
    )  # what was handed on can be handed on
    assert said(tmp_path / "again") == aloud
    with pytest.raises(CheckpointError, match="speak, stage talker"):
        Engine.load(tmp_path / "mute", "cpu").speak(["a"])


def test_the_command_line_speaks_and_chats_from_what_was_exported(
    export: Export, whole: Path, tmp_path: Path
) -> None:
    assert export(whole, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    shutil.rmtree(whole)
    for asked in (["speak", "the red circle", "--out"], ["chat", "--text", "the red circle", "--speak"]):
        wave = tmp_path / f"{asked[0]}.wav"
        with pytest.raises(SystemExit) as left:
            cli.main([asked[0], str(tmp_path / "out"), *asked[1:], str(wave)])
        assert left.value.code == 0
        assert wave.is_file() or asked[0] == "chat"  # an untrained one may answer without a word


@pytest.mark.parametrize(
    "torn", ["model.safetensors", "codec/model.safetensors", "thinker/model.safetensors", "tokenizer.json"]
)
def test_a_changed_voice_is_refused(export: Export, whole: Path, tmp_path: Path, torn: str) -> None:
    path = whole / "talker" / "final" / torn
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"x")
    code, told = export(whole, "--to", "omni", "--out", tmp_path / "out")
    assert (code, torn in told, (tmp_path / "out").exists()) == (2, True, False)
    path.write_bytes(good)
    assert export(whole, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    (tmp_path / "out" / "talker" / torn).write_bytes(good[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is not what its certificate speaks of"):
        Engine.load(tmp_path / "out", "cpu").speak(["a"])
    with pytest.raises(CheckpointError, match="is not what its certificate speaks of"):
        Engine.load(tmp_path / "out", "cpu").answer("a")


def test_a_red_or_unproven_voice_is_not_handed_on_unless_it_is_waived(
    export: Export, whole: Path, tmp_path: Path
) -> None:
    certify(whole / "talker", "red")
    code, told = export(whole, "--to", "omni", "--out", tmp_path / "out")
    assert (code, "talker is not exported" in told, f"or export {whole}/omni" in told, "\n" in told) == (
        1,
        True,
        True,
        False,
    )
    assert export(whole, "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    waived = ("--waive", "image_swap_sure", "--reason", "to hear it")
    assert export(whole, "--to", "omni", "--out", tmp_path / "out", *waived)[0] == 0
    found = files.read_json(tmp_path / "out" / "certificate.json")
    assert (found["verdict"], found["inherited"]) == (
        "waived",
        [{"stage": "talker", "gate": "image_swap_sure", "why": "to hear it"}],
    )
    (whole / "talker" / "certificate.json").unlink()
    assert export(whole, "--to", "omni", "--out", tmp_path / "new")[0] == 1


def test_a_thinker_with_a_voice_is_handed_on_with_it(export: Export, whole: Path, tmp_path: Path) -> None:
    for name in ("omni", "hearing", "vision", "codec"):
        shutil.rmtree(whole / name)
    certify(whole / "thinker")
    aloud = said(whole)
    assert export(whole, "--to", "omni", "--out", tmp_path / "out")[0] == 0
    assert export(tmp_path / "out", "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    assert not (tmp_path / "hf" / "talker").exists()
    shutil.rmtree(whole)
    assert said(tmp_path / "out") == aloud


def test_what_is_red_or_unproven_is_not_handed_on(export: Export, own: Path, tmp_path: Path) -> None:
    certify(own / "align", "red")
    asked = (own / "align", "--to", "omni", "--out", tmp_path / "out")
    code, told = export(*asked)
    assert (code, "image_swap_sure" in told, "\n" in told) == (1, True, False)
    assert export(*asked, "--waive", "image_swap_sure")[0] == 2
    assert export(*asked, "--waive", "none_such", "--reason", "because")[0] == 2
    assert not (tmp_path / "out").exists()
    assert export(*asked, "--waive", "image_swap_sure", "--reason", "to look at it")[0] == 0
    found = files.read_json(tmp_path / "out" / "certificate.json")
    assert (found["verdict"], found["gates"][0]["verdict"], found["gates"][0]["why"]) == (
        "waived",
        "waived",
        "to look at it",
    )
    assert files.read_json(own / "align" / "certificate.json")["verdict"] == "red"  # the run's own stays
    (own / "align" / "certificate.json").unlink()
    assert export(own / "align", "--to", "omni", "--out", tmp_path / "other")[0] == 1


def test_other_bases_are_refused(export: Export, others: Path, tmp_path: Path) -> None:
    config = others / "siglip" / "preprocessor_config.json"
    weights = others / "qwen" / "config.json"
    weights.write_text(json.dumps({**json.loads(weights.read_text()), "rms_norm_eps": 1e-5}))
    code, told = export(others, "--to", "omni", "--out", tmp_path / "out")
    assert (code, "other weights" in told) == (2, True)
    assert config.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others"]  # nothing half is left


@pytest.mark.parametrize("to", ["omni", "hf"])
def test_what_lies_there_stays(export: Export, own: Path, tmp_path: Path, to: str) -> None:
    files.write_text(tmp_path / "out" / "mine.txt", "mine")
    files.write_text(tmp_path / "file", "mine")
    for out in (tmp_path / "out", tmp_path / "file", own / "instruct" / "final" / "new"):
        assert export(own, "--to", to, "--out", out)[0] == 2
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export(own, "--to", to, "--out", tmp_path / "empty")[0] == 0
    assert export(tmp_path / "nothing", "--to", to, "--out", tmp_path / "new")[0] == 2
    assert export(own / "vision", "--to", to, "--out", tmp_path / "new")[0] == 2


@pytest.mark.parametrize(
    "torn", ["omni.json", "projectors/model.safetensors", "lora/adapter_model.safetensors"]
)
def test_a_torn_stage_leaves_nothing_behind(export: Export, own: Path, tmp_path: Path, torn: str) -> None:
    path = own / "instruct" / "final" / torn
    path.write_bytes(path.read_bytes()[:-40])
    code, told = export(own, "--to", "omni", "--out", tmp_path / "out")
    assert (code, "\n" in told) == (2, False)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["own"]
