"""A token model that is handed on: transformers opens it with equal scores, it stands alone with its codecs,
and its rows go into the source's layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny_codecs
from muomni import cli, files
from muomni.inspection import inspect
from muomni.models import lora, pretrained, rows, store
from muomni.models.codecs import open_codec
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.lora import LoraSettings
from muomni.models.reference import NetworkReference
from muomni.models.rows import TokenModel
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer
from seeing_run import certify

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
Export = Callable[..., tuple[int, str]]
TEXTS = ["a red circle", "a blue square and a green star", "say seven, then say three"] * 4


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Export:
    """`muomni export` in this process: exit code and standard error."""

    def call(*args: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["export", *map(str, args)])
        return int(left.value.code or 0), capsys.readouterr().err.strip()

    return call


def made(
    run: Path, *, tied: bool = True, dtype: torch.dtype = torch.float32, with_lora: bool = False
) -> Path:
    """A run with a thinker, codecs of transformers beside it, and rows of random numbers upon them."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, 320)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, ctx_len=64, dropout=0.0, tied=tied
    )
    base = run / "thinker" / "final"
    store.save(Decoder(config).to(dtype), base)
    tokenizer.save(base, 64)
    certify(run / "thinker")
    references, entries = {}, []
    for modality, kind, books in (("image", "janus_vq", None), ("audio", "encodec", 2)):
        tiny_codecs.saved(kind, run / kind)
        codec = open_codec(run / kind, books)
        entries.append(CodecEntry.of(codec, name=kind, layout="interleaved"))
        named = NetworkReference(name=str(run / kind))
        references[modality] = named.describe(run / kind, is_stage=False)
    decoder = pretrained.open_decoder(base, dtype=dtype)
    stage = run / ("mmpt" if with_lora else "rows")
    if with_lora:
        lora.attach(decoder, LoraSettings(r=2, alpha=4, dropout=0.0))
        with torch.no_grad():
            for name, each in decoder.named_parameters():
                if "lora_B" in name:
                    each.normal_(std=0.2)
        lora.save(decoder, stage / "final" / rows.ADAPTER, "thinker")
    model = TokenModel(decoder, TokenSpace.of(tokenizer, entries))
    with torch.no_grad():
        model.new_embed.normal_()
        model.new_head.normal_()
    describe = NetworkReference(name="thinker").describe(base, is_stage=True)
    rows.save(model, stage / "final", base=describe, codecs=references, longest={"text": 8, "audio": 6})
    certify(stage)
    return stage


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ({"tied": True}, 1e-6),
        ({"tied": False}, 1e-6),
        ({"with_lora": True}, 1e-6),
        ({"dtype": torch.bfloat16}, 2**-7),  # two steps of the format
    ],
)
def test_transformers_gives_the_same_scores(
    export: Export, tmp_path: Path, how: dict[str, object], most: float
) -> None:
    stage = made(tmp_path / "run", **how)  # type: ignore[arg-type]
    model, tokenizer, _ = rows.open_folder(stage / "final", dtype=None)
    code, error = export(stage, "--to", "hf", "--out", tmp_path / "out")
    assert code == 0, error
    shutil.rmtree(tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    space = TokenSpace.load(tmp_path / "out")
    assert theirs.config.vocab_size == space.size == model.space.size
    assert theirs.get_input_embeddings().weight.dtype == how.get("dtype", torch.float32)
    ids_BT = torch.randint(space.size, (3, 20), generator=torch.Generator().manual_seed(1))
    # As it is stored against what was exported; and transformers against ours, both in float32.
    stored, single = (pretrained.open_decoder(tmp_path / "out", dtype=each) for each in (None, torch.float32))
    with torch.no_grad():
        pairs = [(stored(ids_BT), model(ids_BT), most), (theirs.float()(ids_BT).logits, single(ids_BT), 1e-6)]
    for one, other, bound in pairs:
        difference = float((one.float() - other.float()).abs().max() / other.float().abs().max())
        assert difference <= bound, difference
    # Its tokenizer spells every id of the space, and text as before.
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(words) == space.size
    assert words.convert_tokens_to_ids(space.names()) == list(space.new_rows)
    assert words.convert_tokens_to_ids("<|audio_1_5|>") == space.region("audio_1").start + 5
    assert words.encode(TEXTS[1], add_special_tokens=False) == tokenizer.encode(TEXTS[1])
    unified = UnifiedTokenizer(tokenizer, space)
    row = [space.special("img_start"), *space.region("image").ids[:4], space.special("img_end")]
    assert words.decode(row) == "<|img_start|><|image_0|><|image_1|><|image_2|><|image_3|><|img_end|>"
    assert words(words.decode(row), add_special_tokens=False)["input_ids"] == row
    assert unified.space.hash == space.hash
    ends = theirs.generation_config.eos_token_id
    assert ends == [space.special(name) for name in ("text_end", "img_end", "aud_end")]


@pytest.mark.parametrize("with_lora", [False, True])
def test_it_stands_alone_with_its_codecs(export: Export, tmp_path: Path, with_lora: bool) -> None:
    stage = made(tmp_path / "run", with_lora=with_lora)
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        before = rows.open_folder(stage / "final")[0](ids_BT)
    code, error = export(stage, "--to", "omni", "--out", tmp_path / "out")
    assert code == 0, error
    shutil.rmtree(tmp_path / "run")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    model, _, note = rows.open_folder(moved)
    with torch.no_grad():
        assert torch.equal(model(ids_BT), before)
    assert {codec.modality for codec in rows.open_codecs(moved)} == {"image", "audio"}
    assert note.longest == {"text": 8, "audio": 6}
    found = inspect(moved)
    assert found["kind"] == "rows"
    assert found["verdict"] == "green"
    assert files.read_json(moved / "origin.json")["bases"].keys() == {"thinker", "image", "audio"}


def test_the_rows_go_into_the_layout_of_the_source(export: Export, tmp_path: Path) -> None:
    stage = made(tmp_path / "run", tied=False)
    model, _, note = rows.open_folder(stage / "final")
    code, error = export(stage, "--to", "uti", "--out", tmp_path / "out")
    assert code == 0, error
    again = TokenModel(pretrained.open_decoder(tmp_path / "run" / "thinker" / "final"), model.space)
    rows.import_source(again, tmp_path / "out", base_llm=note.base_llm)
    assert torch.equal(again.new_embed, model.new_embed.to(torch.bfloat16).float())
    assert torch.equal(again.new_head, model.new_head.to(torch.bfloat16).float())
    code, error = export(tmp_path / "run" / "thinker", "--to", "uti", "--out", tmp_path / "none")
    assert code == 2
    assert "no rows of media tokens" in error
    lone = made(tmp_path / "other", with_lora=True)
    code, error = export(lone, "--to", "uti", "--out", tmp_path / "none")
    assert code == 2
    assert "its language model learned too" in error
    assert not (tmp_path / "none").exists()


def test_a_run_with_rows_is_exported_by_them(export: Export, tmp_path: Path) -> None:
    """Stage rows, or mmpt, is the last that answers, not the thinker beneath."""
    made(tmp_path / "run")
    code, error = export(tmp_path / "run", "--to", "hf", "--out", tmp_path / "out")
    assert code == 0, error
    assert (tmp_path / "out" / "token_space.json").is_file()


def test_a_word_of_the_base_that_is_spelled_alike_keeps_its_id(export: Export, tmp_path: Path) -> None:
    stage = made(tmp_path / "run")
    from muomni.infer import export as work

    folder = tmp_path / "spelled"
    folder.mkdir()
    shutil.copy(tmp_path / "run" / "thinker" / "final" / "tokenizer.json", folder)
    content = files.read_json(folder / "tokenizer.json")
    content["added_tokens"][-1]["content"] = "<|img_start|>"
    files.write_json(folder / "tokenizer.json", content)
    space = TokenSpace.load(stage / "final")
    work._spell(folder, space)
    spelled = {
        token["content"]: token["id"] for token in files.read_json(folder / "tokenizer.json")["added_tokens"]
    }
    assert spelled["<|img_start|>"] < space.text_size
    assert spelled["<|img_start_mm|>"] == space.special("img_start")
