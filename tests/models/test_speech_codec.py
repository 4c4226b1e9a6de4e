"""Our audio codec behind the face of all codecs, the registry that opens it, and what a package adds to
it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni import files
from muomni.errors import CheckpointError, ConfigError, ShapeError, TokenRangeError
from muomni.media import griffin_lim, mel
from muomni.models import codecs, integrity, store
from muomni.models.codec import Codec as MelCodec
from muomni.models.codec import CodecConfig
from muomni.models.codecs.speech import SpeechCodec
from muomni.tokens.codec import Codec


def network(**changes: int) -> MelCodec:
    torch.manual_seed(0)
    made = MelCodec(
        CodecConfig(
            **{
                "width": 16,
                "latent_width": 8,
                "blocks": 2,
                "fine_width": 8,
                "fine_blocks": 1,
                "codebook_size": 12,
                **changes,
            }
        )
    )
    made.quantiser.codebooks_KND.normal_()
    made.mel_mean.fill_(-2.0)
    return made.eval()


def wave(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_its_vectors_are_what_its_decoder_reads() -> None:
    codec = SpeechCodec(network())
    tables = codec.code_vectors()
    codes = torch.randint(12, (1, codec.codebooks, 5), generator=torch.Generator().manual_seed(0))
    summed = torch.stack([table[book] for table, book in zip(tables, codes[0])]).sum(0)
    torch.testing.assert_close(summed, codec.network.quantiser.decode(codes)[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.save(network(), tmp_path / "codec" / "final")
    return tmp_path / "codec"


def test_it_is_opened_by_its_stage_folder_or_its_final(folder: Path) -> None:
    for reference in (folder, folder / "final", str(folder)):
        own: Codec = codecs.open_codec(reference)
        assert (own.kind, own.modality, own.codebooks, own.codebook_size) == ("muomni_codec", "audio", 2, 12)
        assert (own.frame_rate_hz, own.sample_rate_hz, own.size_px, own.grid) == (12.5, 16_000, None, None)
    assert codecs.open_codec(folder, 2).digest == own.digest
    with pytest.raises(ConfigError, match="2 codebooks"):
        codecs.open_codec(folder, 1)


def test_its_codes_are_those_of_the_log_mel_and_its_wave_is_that_of_the_decoded_frames(folder: Path) -> None:
    own, true = codecs.open_codec(folder), network()
    wave_BS = torch.stack([wave(21_000), wave(21_000, 1)])
    mel_BFM = mel.log_mel(wave_BS, mel.SPEECH)
    codes = own.encode(wave_BS)
    assert torch.equal(codes, true.encode(mel_BFM, torch.tensor([131, 131])))
    assert codes.shape == (2, 2, own.frames(21_000))
    assert codes.unique().numel() > 3
    sound = own.decode(codes)
    assert sound.shape == (2, own.samples(codes.shape[2]))
    expected = griffin_lim.sound(true.decode(codes)[1], mel.SPEECH)
    assert torch.equal(sound[1], torch.from_numpy(expected))
    assert torch.equal(sound, own.decode(codes))


def test_clips_of_any_length_are_coded_as_alone(folder: Path) -> None:
    own = codecs.open_codec(folder)
    clips = [wave(5_000), wave(4_999, 1), wave(5_000, 2), wave(160, 3)]
    for each, codes in zip(clips, own.encode_many(clips)):
        assert torch.equal(codes, own.encode(each[None])[0])
        assert codes.shape == (2, own.frames(len(each)))


@pytest.mark.parametrize("samples", [160, 319, 320, 1279, 1280, 1439, 1440, 16_000, 20_001])
def test_frames_and_samples_are_told_beforehand(folder: Path, samples: int) -> None:
    own = codecs.open_codec(folder)
    frames = own.encode(wave(samples)[None]).shape[2]
    assert own.frames(samples) == frames
    assert own.samples(frames) == own.decode(torch.zeros(1, 2, frames, dtype=torch.int64)).shape[1]
    assert abs(own.samples(frames) - samples) < 1280 + 160


def test_what_it_cant_do_is_refused(folder: Path) -> None:
    own = codecs.open_codec(folder)
    with pytest.raises(ShapeError, match="at least 160 samples"):
        own.encode(torch.zeros(1, 159))
    with pytest.raises(TokenRangeError, match="book 1"):
        own.decode(torch.tensor([[[0, 0], [0, 12]]]))
    with pytest.raises(ShapeError, match=r"\(B, 2, F >= 1\)"):
        own.decode(torch.zeros(1, 3, 4, dtype=torch.int64))


def test_its_digest_is_that_of_its_content_and_no_other(folder: Path, tmp_path: Path) -> None:
    digest = codecs.open_codec(folder).digest
    store.save(network(), tmp_path / "elsewhere", extra={"note": "not of the codec"})
    assert codecs.open_codec(tmp_path / "elsewhere").digest == digest
    others = [network(), network(), network(stride_frames=4)]
    others[0].quantiser.codebooks_KND[1, 3, 2] += 1e-3
    others[1].quantiser.codebooks_KND.copy_(
        others[1].quantiser.codebooks_KND.flip(0)
    )  # the books have changed places
    assert len({SpeechCodec(each).digest for each in others} | {digest}) == 4


def test_a_final_that_is_not_what_its_certificate_names_is_refused(folder: Path) -> None:
    certificate = {
        "stage": "codec",
        "verdict": "green",
        "gates": [],
        "facts": {},
        "files": integrity.digests(folder / "final"),
    }
    files.write_json(folder / integrity.CERTIFICATE, certificate)
    codecs.open_codec(folder)
    store.save(network(codebook_size=13), folder / "final")
    with pytest.raises(CheckpointError, match="not what its certificate speaks of"):
        codecs.open_codec(folder)


def test_what_is_no_codec_is_refused_with_those_that_are(tmp_path: Path) -> None:
    files.write_json(tmp_path / "config.json", {"model_type": "qwen3"})
    with pytest.raises(CheckpointError, match=r"model_type is 'qwen3'.*muomni_codec"):
        codecs.open_codec(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder or a hub id"):
        codecs.open_codec(tmp_path / "nowhere")


def test_a_package_brings_a_codec_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "site" / "loud-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    entries = (
        f"[{codecs.OPENERS.group}]\nloud_codec = loud_codec:open_it\nmuomni_codec = loud_codec:open_it\n"
    )
    (about / "entry_points.txt").write_text(entries)
    (about.parent / "loud_codec.py").write_text(
        "def open_it(folder, codebooks, device):\n    return ('loud', folder, codebooks, device)\n"
    )
    named = tmp_path / "loud"
    files.write_json(named / "config.json", {"model_type": "loud_codec"})
    with pytest.raises(CheckpointError, match="no codec"):
        codecs.open_codec(named)
    monkeypatch.syspath_prepend(str(about.parent))
    assert codecs.open_codec(named, 3) == ("loud", named, 3, "cpu")
    assert codecs.OPENERS.names()[-1] == "loud_codec"
    assert isinstance(codecs.open_codec(folder), SpeechCodec)  # nobody takes the name of one of ours
