"""Weights of others: found or refused in one line, named by their content, opened as they are and without a
copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from muomni.errors import CheckpointError, ConfigError
from muomni.infer.engine import Engine
from muomni.models import pretrained, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.models.vision_tower import VisionTower
from muomni.tokens.bpe import Tokenizer
from seeing_run import save_qwen

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def thinker(tmp_path):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=20, width=16, layers=2, heads=2, ffn_width=32)).eval()
    store.save(model, tmp_path / "thinker")
    return model


@pytest.fixture
def eyes(tmp_path):
    torch.manual_seed(0)
    model = VisionEncoder(
        VisionEncoderConfig(image_size=32, patch_size=8, width=32, layers=3, heads=2, ffn_width=64)
    ).eval()
    store.save(model, tmp_path / "eyes")
    return model


# Finding


def test_a_folder_is_looked_for_beside_the_recipe_then_here_then_at_home(tmp_path, monkeypatch):
    for folder in ("recipes/model", "here/model", "here/other", "home/mine"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    base = tmp_path / "recipes"
    assert pretrained.locate("model", None, base) == base / "model"
    assert pretrained.locate("other", None, base).resolve() == tmp_path / "here" / "other"
    assert pretrained.locate("~/mine", None, base) == tmp_path / "home" / "mine"
    assert pretrained.locate(str(tmp_path / "here"), None, base) == tmp_path / "here"


@pytest.mark.parametrize("name", ["./none", "/none", "~/none", "a/b/c", "", "a b", "-x"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name, tmp_path):
    with pytest.raises(ConfigError) as error:
        pretrained.locate(name, None, tmp_path / "recipes")
    assert "expected a folder or a hub id" in one_line(error)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_offline_a_hub_id_must_be_in_the_cache(revision, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError) as error:
        pretrained.locate("Qwen/Qwen3-0.6B", revision, tmp_path)
    assert "hf download Qwen/Qwen3-0.6B" in one_line(error)
    assert ("at revision v2" in str(error.value)) == (revision == "v2")


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot(name, **how):
        asked.update(how, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert pretrained.locate("Qwen/Qwen3-0.6B", "abc", tmp_path / "recipes") == tmp_path
    assert (asked["name"], asked["revision"]) == ("Qwen/Qwen3-0.6B", "abc")
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("module", ["huggingface_hub", "transformers"])
def test_without_the_extra_the_way_out_is_named(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ConfigError, match=r"muomni\[hf\]") as error:
        pretrained.open_tower(tmp_path) if module == "transformers" else pretrained.locate(
            "Qwen/Qwen3-0.6B", None, tmp_path
        )
    one_line(error)


# Naming


@pytest.mark.parametrize("file", [store.CONFIG, store.WEIGHTS])
def test_the_digest_changes_with_one_byte(file, thinker, tmp_path):
    folder = tmp_path / "thinker"
    before = pretrained.digest(folder)
    assert pretrained.digest(folder) == before
    content = bytearray((folder / file).read_bytes())
    content[-20] ^= 1 if file == store.WEIGHTS else 0
    (folder / file).write_bytes(bytes(content) + (b" " if file == store.CONFIG else b""))
    assert pretrained.digest(folder) != before
    (folder / "README.md").write_text("beside the weights")
    assert pretrained.digest(folder) != before


def test_the_digest_is_of_content_not_of_place_and_of_every_shard(thinker, tmp_path):
    folder = tmp_path / "thinker"
    (folder).rename(tmp_path / "moved")
    store.save(thinker, folder)
    assert pretrained.digest(folder) == pretrained.digest(tmp_path / "moved")
    shard(folder)
    before = pretrained.digest(folder)
    for part in sorted(folder.glob("model-*.safetensors")):
        content = part.read_bytes()
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert pretrained.digest(folder) != before
        part.write_bytes(content)
        os.utime(part)


@pytest.mark.parametrize("file", [store.CONFIG, store.WEIGHTS])
def test_a_digest_of_what_is_not_there_is_refused(file, thinker, tmp_path):
    (tmp_path / "thinker" / file).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        pretrained.digest(tmp_path / "thinker")


# The decoder


def shard(folder):
    tensors = load_file(folder / store.WEIGHTS)
    files = {
        name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))
    }
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / store.WEIGHTS).unlink()
    (folder / store.INDEX).write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_qwen3_checkpoint_gives_transformers_logits(is_tied, kv_heads, size, dtype, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=61,  # more rows than any tokenizer's ids, as Qwen3's 151,936 are
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        tie_word_embeddings=is_tied,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(1)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=size)
    # Opened again: a model that was cast has rounded rotary frequencies too, which no opened one has.
    theirs, exact = (
        transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=each).eval()
        for each in (dtype, torch.float32)
    )
    assert (tmp_path / store.INDEX).exists() == (size == "20KB")
    ours = pretrained.open_decoder(tmp_path)
    assert not ours.training
    assert {each.dtype for each in ours.parameters()} == {dtype}
    assert ours.head.weight.shape == (61, 32)
    assert ours.embed(torch.tensor([[60]])).shape == (1, 1, 32)
    ids = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found, truth = theirs(ids).logits, ours(ids), exact(ids).logits
    assert found.dtype == dtype
    cast = pretrained.open_decoder(tmp_path, dtype=torch.float32)
    assert {each.dtype for each in cast.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(cast(ids), truth, rtol=1e-4, atol=1e-4)
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:  # single logits differ by their order of sums; ours must not stray farther from the truth than theirs
        assert rms(found - truth) < 1.5 * rms(expected - truth)
        assert rms(found - expected) < 3e-2 * rms(truth)
    assert rms(truth) > 0.1


def rms(x):
    return float(x.float().square().mean().sqrt())


def test_our_own_thinker_is_one_too(thinker, tmp_path):
    opened = pretrained.open_decoder(tmp_path / "thinker")
    assert store.digest(opened) == store.digest(thinker)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(opened(ids), thinker(ids), atol=1e-6, rtol=1e-6)
    opened(ids).sum().backward()  # LoRA and the connector need gradients through it
    assert opened.model.embed_tokens.weight.grad is not None


def test_what_is_no_decoder_is_refused(thinker, eyes, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a decoder .*got a VisionEncoder") as error:
        pretrained.open_decoder(tmp_path / "eyes")
    one_line(error)
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as error:
        pretrained.open_decoder(tmp_path / "none")
    one_line(error)
    config = json.loads((tmp_path / "thinker" / store.CONFIG).read_text())
    for changes, message in (
        ({"model_type": "llama"}, "model_type must be one of"),
        ({"attention_bias": True}, "attention_bias"),
        ({"vocab_size": 19}, r"expected \(19, 16\), got \(20, 16\)"),  # never cut to the tokenizer's size
        ({"tie_word_embeddings": False}, "missing lm_head.weight"),
    ):
        (tmp_path / "thinker" / store.CONFIG).write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=message) as error:
            pretrained.open_decoder(tmp_path / "thinker")
        one_line(error)


def test_a_torn_shard_is_named(thinker, tmp_path):
    shard(tmp_path / "thinker")
    path = tmp_path / "thinker" / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is torn") as error:
        pretrained.open_decoder(tmp_path / "thinker")
    one_line(error)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing") as error:
        pretrained.open_decoder(tmp_path / "thinker")
    one_line(error)


MEASURE = """
import sys, torch
from muomni.models import pretrained
def anonymous_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
pretrained.open_decoder(sys.argv[1])  # what the first call imports is not the model's
before = anonymous_kb()
model = pretrained.open_decoder(sys.argv[2], dtype=getattr(torch, sys.argv[3]) if sys.argv[3] != "None" else None)
print(anonymous_kb() - before, sum(each.nbytes for each in model.parameters()) // 1024)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="NOT MEASURED: no /proc here to read a process's memory from",
)
def test_opening_in_the_stored_dtype_costs_no_memory(thinker, tmp_path):
    config = DecoderConfig(vocab_size=65536, width=1024, layers=2, heads=8, ffn_width=4096)
    with torch.device("meta"):
        names = {name: each.shape for name, each in Decoder(config).state_dict().items()}
    (tmp_path / "large").mkdir()
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in names.items()},
        tmp_path / "large" / store.WEIGHTS,
    )
    (tmp_path / "large" / store.CONFIG).write_text(json.dumps(config.to_file()))

    def measured(dtype):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "thinker"), str(tmp_path / "large"), dtype]
        grown, size = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(grown), int(size)

    grown, size = measured("None")
    assert size > 190_000
    assert grown < 0.05 * size, f"opening {size} kB grew the process by {grown} kB"
    grown, size = measured("float32")  # the ruler measures: another dtype is a copy
    assert grown > 0.9 * size


# The eyes


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_our_own_eyes_have_the_face(dtype, eyes, tmp_path):
    tower = pretrained.open_tower(tmp_path / "eyes", dtype=dtype)
    assert isinstance(tower, VisionTower)
    assert not tower.training
    assert (tower.image_size, tower.side, tower.width, tower.num_cls_tokens, tower.depth) == (32, 4, 32, 1, 3)
    assert tower.resample == "bicubic"
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    near = {"atol": 1e-6, "rtol": 1e-6} if dtype is None else {"atol": 0.1, "rtol": 0.1}
    with torch.no_grad():
        seen, levels = eyes(pixels), eyes(pixels, (0, 2)).layers_BTE
        torch.testing.assert_close(
            tower.encode_image(pixels).float(), torch.cat([seen.cls_B1D, seen.grid_BPD], 1), **near
        )
        torch.testing.assert_close(tower.encode_image(pixels, (0, 2)).float(), levels, **near)
        assert tower.encode_image(pixels, (0, 2)).shape == (2, 17, 64)
    pretrained.save_tower(tower, tmp_path / "again")
    assert store.digest(pretrained.open_tower(tmp_path / "again")) == store.digest(tower)


def test_what_is_no_tower_is_refused(thinker, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a vision tower .*got a Decoder") as error:
        pretrained.open_tower(tmp_path / "thinker")
    one_line(error)


# The tokenizer beside it


@pytest.mark.parametrize("rows", [-1, 0, 3])
def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_refused(tmp_path, rows):
    """Before, the first sentence that used such an id ended in an IndexError."""
    save_qwen(tmp_path)
    ids = Tokenizer.load(tmp_path).num_ids
    store.save(
        Decoder(DecoderConfig(vocab_size=ids + rows, width=16, layers=1, heads=2, ffn_width=32)), tmp_path
    )
    if rows >= 0:
        tokenizer = pretrained.open_tokenizer(tmp_path)
        assert tokenizer.num_ids == ids
        assert tokenizer.decode([ids - 1]) == ""  # special
        Engine.load(tmp_path, "cpu").answer("the red circle", max_new=3)
        return
    for opens in (
        pretrained.open_tokenizer,
        lambda folder: Engine.load(folder, "cpu").answer("the red circle", max_new=3),
    ):
        with pytest.raises(CheckpointError) as error:
            opens(tmp_path)
        assert f"{ids} ids" in one_line(error)
        assert f"only {ids - 1} rows" in one_line(error)
