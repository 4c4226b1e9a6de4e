"""New rows beside a frozen base: text scores keep their bits, rows alone are saved, and every mismatch is
refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from muomni.errors import CheckpointError, ConfigError, TokenSpaceError
from muomni.models import rows
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.rows import NOTE, ROWS, SOURCE_ROWS, TokenModel
from muomni.tokens.space import TOKEN_SPACE
from spaces import SOURCE, small

BASE = {"name": "thinker", "revision": None, "dtype": "auto", "stage": True, "digest": "b" * 64, "words": ""}


def _decoder(vocab: int = 320, *, tied: bool = False) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=vocab, width=32, layers=2, heads=2, ctx_len=64, dropout=0.0, tied=tied)
    return Decoder(config).eval()


def _model(space=None, *, tied: bool = False, vocab: int = 320) -> TokenModel:
    model = TokenModel(_decoder(vocab, tied=tied), space or small()).eval()
    model.start(torch.Generator().manual_seed(1), spread=1.0)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab", [300, 320, 333])
def test_text_scores_keep_all_their_bits(tied, vocab):
    ids = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = _decoder(vocab, tied=tied)(ids)[..., :300]
        after = _model(tied=tied, vocab=vocab)(ids)
    assert after.shape[-1] == small().size
    assert torch.equal(after[..., :300], before)


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_new_rows_learn(tied):
    model = _model(tied=tied)
    model.decoder.requires_grad_(False)
    model.new_embed.requires_grad_(True)
    model.new_head.requires_grad_(True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "decoder.grown_embed.new_embed",
        "decoder.grown_head.new_head",
    }
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 2 * len(model.space.new_rows) * 32
    ids = torch.tensor([[1, 301, 310, 380, 5]])
    model.head.nats(model.hidden(model.embed(ids)), ids).total.backward()
    assert bool(model.new_head.grad.abs().sum() > 0)
    assert bool(model.new_embed.grad.abs().sum() > 0)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_new_ids_have_rows_of_their_own():
    model = _model(vocab=333)
    first = model.space.text_size
    x = model.embed(torch.tensor([[first - 1, first, model.space.size - 1]]))[0]
    assert torch.equal(x[0], model.decoder.table.weight[first - 1])
    assert torch.equal(x[1], model.new_embed[0])
    assert torch.equal(x[2], model.new_embed[-1])
    scores = model.logits(torch.ones(32))
    torch.testing.assert_close(scores[first:], model.new_head.sum(1))


def test_new_rows_begin_around_the_mean_of_text_rows():
    model = _model(vocab=333)
    model.start(torch.Generator().manual_seed(3))
    text = model.decoder.table.weight[:300]
    near = (model.new_embed - text.mean(0)) / text.std(0, correction=0)
    assert float(near.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(model.new_embed[0], model.new_embed[1])


def test_codes_that_lie_near_begin_as_neighbours():
    model = _model(vocab=333)
    space, levels = model.space, torch.arange(16.0)
    circle = torch.stack([(levels * torch.pi / 8).cos(), (levels * torch.pi / 8).sin()], 1)
    before = torch.Generator().manual_seed(3)
    model.start(before, 1.0, {"image": [circle]})
    book, first = space.region("image"), space.text_size
    for new, table in (
        (model.new_embed, model.decoder.table.weight[:300]),
        (model.new_head, model.head.tables[0][:300]),
    ):
        off = ((new - table.mean(0)) / table.std(0, correction=0)).detach()
        own = off[book.start - first : book.end + 1 - first]
        assert float(own.std()) == pytest.approx(1.0, rel=0.05)
        assert float(off[: book.start - first].std()) == pytest.approx(1.0, rel=0.1)  # rows of no codec
        apart = torch.cdist(own, own)
        assert set(apart.fill_diagonal_(9e9).argmin(1).sub(torch.arange(16)).remainder(16).tolist()) == {
            1,
            15,
        }
    alone = _model(vocab=333)
    alone.start(torch.Generator().manual_seed(3), 1.0)
    assert torch.equal(alone.new_embed[: book.start - first], model.new_embed[: book.start - first])


def test_a_grid_of_streams_is_read_as_the_sum_of_its_ids():
    model = _model(small("delay"))
    space = model.space
    ids = torch.full((1, 3, 2), space.pad)
    ids[0, :, 0] = torch.tensor([7, space.pad, space.pad])
    ids[0, :, 1] = torch.tensor([book.start for book in space.books("audio")])
    x = model.embed(ids)[0]
    one = model.embed(torch.tensor([[7, *[book.start for book in space.books("audio")], space.pad]]))[0]
    torch.testing.assert_close(x[0], one[0])
    torch.testing.assert_close(x[1], one[1:4].sum(0))
    torch.testing.assert_close(model.embed(torch.full((1, 3, 1), space.pad))[0, 0], one[4])
    assert model.head.streams == 3


@pytest.mark.parametrize("legal", [None, "books"])
def test_streams_are_scored_by_one_table(legal):
    model = _model(small("delay"))
    space = model.space
    ids = torch.full((2, 3, 5), space.pad)
    ids[:, 0] = torch.randint(300, (2, 5), generator=torch.Generator().manual_seed(0))
    wanted = None if legal is None else [(book.ids,) for book in space.books("audio")]
    with torch.inference_mode():
        x = model.embed(ids)
        fast = model.reading(wanted)(x, model.new_cache(2, 8), None)
        whole = model.logits(model.hidden(x))[:, -1]
    for stream, scores in enumerate(fast):
        expected = whole if wanted is None else whole[:, wanted[stream][0].start : wanted[stream][0].stop]
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_rows_survive_their_folder(tmp_path):
    model = _model()
    rows.save(model, tmp_path, base=BASE, codecs={}, longest={"audio": 7})
    again = TokenModel(_decoder(), small())
    note = rows.load_rows(again, tmp_path, base_digest="b" * 64)
    assert torch.equal(again.new_embed, model.new_embed)
    assert torch.equal(again.new_head, model.new_head)
    assert (note.row_start, note.row_end) == (300, small().size)
    assert note.longest == {"audio": 7}
    assert {path.name for path in tmp_path.iterdir()} == {ROWS, NOTE, TOKEN_SPACE}
    numbers = sum(tensor.numel() for tensor in load_file(tmp_path / ROWS).values())
    assert numbers == 2 * len(small().new_rows) * 32, "nothing of the base"


def _saved(folder):
    rows.save(_model(), folder, base=BASE, codecs={})
    return folder


def test_rows_on_another_base_are_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"trained on base thinker: expected digest bbbbbbbbbbbb, got cccccccccccc"
    ):
        rows.load_rows(_model(), _saved(tmp_path), base_digest="c" * 64)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (replace(small(), text_size=299), "region text: expected 0..298, got 0..299"),
        (replace(small(), special_size=32), "region special"),
        (replace(small(), tokenizer="0" * 64), "text tokenizer"),
        (small("delay"), "audio codec layout: expected delay, got interleaved"),
        (small(books=2), "region audio_2: expected none"),
        (
            replace(small(), codecs=(small().codecs[0], replace(small().codecs[1], digest="0" * 64))),
            "audio codec digest",
        ),
    ],
)
def test_rows_of_another_space_are_refused_with_what_differs(tmp_path, space, message):
    with pytest.raises(TokenSpaceError, match=message):
        rows.load_rows(_model(space), _saved(tmp_path), base_digest="b" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_start": 301}, r"expected rows 300\.\.404, got 301\.\.404"),
        ({"token_space": "0" * 64}, "token space"),
        ({"surprise": 1}, "other keys"),
    ],
)
def test_a_note_that_does_not_fit_is_refused(tmp_path, change, message):
    _saved(tmp_path)
    content = json.loads((tmp_path / NOTE).read_text())
    (tmp_path / NOTE).write_text(json.dumps({**content, **change}))
    with pytest.raises((CheckpointError, TokenSpaceError), match=message):
        rows.load_rows(_model(), tmp_path, base_digest="b" * 64)


def _other_space():
    """A space of the same sizes in which the codes of sounds mean something else."""
    image, audio = small().codecs
    return replace(small(), codecs=(image, replace(audio, digest="0" * 64)))


def test_rows_beside_a_forged_note_and_space_are_refused(tmp_path):
    """Note and space agree with the model and with each other; the rows were trained for another space."""
    _saved(tmp_path / "own")
    rows.save(_model(_other_space()), tmp_path / "other", base=BASE, codecs={})
    for name in (NOTE, TOKEN_SPACE):
        (tmp_path / "other" / name).write_bytes((tmp_path / "own" / name).read_bytes())
    with pytest.raises(TokenSpaceError, match=rf"{ROWS}: expected ids of token space {small().hash[:12]}"):
        rows.load_rows(_model(), tmp_path / "other", base_digest="b" * 64)


def test_rows_that_name_no_space_open_by_their_note(tmp_path):
    """As they were written before their file named one."""
    _saved(tmp_path)
    save_file(load_file(tmp_path / ROWS), tmp_path / ROWS, metadata={"format": "pt"})
    again = TokenModel(_decoder(), small())
    rows.load_rows(again, tmp_path, base_digest="b" * 64)
    assert torch.equal(again.new_embed, _model().new_embed)


def test_the_file_of_rows_has_one_key_of_metadata(tmp_path):
    """Several are written in another order in each process: equal runs would leave other bytes."""
    _saved(tmp_path)
    size = int.from_bytes((tmp_path / ROWS).read_bytes()[:8], "little")
    header = json.loads((tmp_path / ROWS).read_bytes()[8 : 8 + size])
    assert header["__metadata__"] == {"token_space": small().hash}


def test_torn_or_foreign_tensors_are_refused(tmp_path):
    _saved(tmp_path)
    tensors = load_file(tmp_path / ROWS)
    for changed, message in (
        ({"new_embed": tensors["new_embed"]}, "expected"),
        ({**tensors, "more": torch.zeros(1)}, "expected"),
        ({**tensors, "new_head": tensors["new_head"][1:].clone()}, "another token space or width"),
        ({**tensors, "new_head": tensors["new_head"] * float("nan")}, "new_head holds NaN"),
    ):
        save_file(changed, tmp_path / ROWS)
        with pytest.raises(CheckpointError, match=message):
            rows.load_rows(_model(), tmp_path, base_digest="b" * 64)
    (tmp_path / ROWS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn"):
        rows.load_rows(_model(), tmp_path, base_digest="b" * 64)


def test_a_space_beyond_the_models_words_is_refused():
    with pytest.raises(CheckpointError, match="text has 300 ids, the language model only 290 rows"):
        TokenModel(_decoder(290), small())
    decoder = _decoder()
    TokenModel(decoder, small())
    with pytest.raises(ConfigError, match="new rows already"):
        TokenModel(decoder, small())


# --- the source's layout ----------------------------------------------------------------------------------------------


def _exported(folder, **how):
    model = _model()
    rows.export_source(model, folder, base_llm="Qwen/Qwen3-8B", created_utc="2026-01-14T10:00:00Z", **how)
    return model


def test_the_sources_checkpoint_is_written_and_read(tmp_path):
    model = _exported(tmp_path, dtype=torch.float32)
    content = torch.load(tmp_path / SOURCE_ROWS, weights_only=True)
    assert set(content) == {"row_start", "row_end", "base_llm", "embeddings", "lm_head", "dtype"}
    assert content["embeddings"].shape == (104, 32)
    assert json.loads((tmp_path / NOTE).read_text()) == {
        "row_start": 300,
        "row_end": 404,
        "base_llm": "Qwen/Qwen3-8B",
        "has_lm_head": True,
    }
    again = TokenModel(_decoder(), small())
    rows.import_source(again, tmp_path, base_llm="Qwen/Qwen3-8B")
    assert torch.equal(again.new_embed, model.new_embed)
    assert torch.equal(again.new_head, model.new_head)


def test_a_checkpoint_without_a_head_serves_both_sides(tmp_path):
    model = _exported(tmp_path)
    content = torch.load(tmp_path / SOURCE_ROWS, weights_only=True)
    torch.save({**content, "lm_head": None, "row_end": 403}, tmp_path / SOURCE_ROWS)
    again = TokenModel(_decoder(tied=True), small())
    rows.import_source(again, tmp_path, base_llm="Qwen/Qwen3-8B")
    assert torch.equal(again.new_head, model.new_embed.to(torch.bfloat16).float())


class _Touch:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_but_tensors_is_unpickled(tmp_path):
    _exported(tmp_path)
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"row_start": _Touch(tmp_path / "harm")}, tmp_path / SOURCE_ROWS)
        with pytest.raises(CheckpointError, match="unsafe"):
            rows.import_source(_model(), tmp_path, base_llm="Qwen/Qwen3-8B")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_start": 299}, r"expected rows 300\.\.404, got 299\.\.404"),
        ({"row_end": 400}, "expected rows"),
        ({"base_llm": "Qwen/Qwen3-4B"}, "expected rows for base Qwen/Qwen3-8B, got Qwen/Qwen3-4B"),
        ({"embeddings": torch.zeros(104, 31)}, "another token space or width"),
        ({"embeddings": [1.0]}, "expected tensors"),
        ({"lm_head": torch.full((104, 32), float("inf"))}, "NaN or infinite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, message):
    _exported(tmp_path)
    content = torch.load(tmp_path / SOURCE_ROWS, weights_only=True)
    torch.save({**content, **change}, tmp_path / SOURCE_ROWS)
    with pytest.raises(CheckpointError, match=message):
        rows.import_source(_model(), tmp_path, base_llm="Qwen/Qwen3-8B")


def test_the_sources_token_space_must_be_the_models(tmp_path):
    _exported(tmp_path)
    content = json.loads((tmp_path / TOKEN_SPACE).read_text())
    content["ranges"]["IMAGE"]["end"] += 1
    (tmp_path / TOKEN_SPACE).write_text(json.dumps(content))
    with pytest.raises(TokenSpaceError, match="ranges IMAGE"):
        rows.import_source(_model(), tmp_path, base_llm="Qwen/Qwen3-8B")


def test_the_sources_space_grows_a_padded_table_of_its_size():
    model = TokenModel(
        Decoder(DecoderConfig(vocab_size=151_936, width=8, layers=1, heads=1, ffn_width=8, ctx_len=8)), SOURCE
    )
    assert model.head.size == 164_021
    assert model.new_head.shape == (12_352, 8)
