#!/usr/bin/env bash
# Guess: a clip that is padded in a batch keeps its codes, at least if padding_mask names the padding.
# Seen (transformers 5.24.0, torch 2.13.0, tiny random weights): DAC gives other codes to its last frames, Mimi to its last one, EnCodec to the beginning of clips of up to six
# frames (its padding on the left mirrors what comes, zeros included); padding_mask changes no code. Equal lengths only.
# Output seen: {('encodec', 3, False): [0, 1, 2], ('encodec', 12, False): [], ('mimi', 6, False): [5], ('encodec', 3, True): [0, 1, 2], ('encodec', 12, True): [11], ('mimi', 6, True): [5], ('dac', 12, False): [7, 9, 10]}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional as F
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

torch.manual_seed(0)
torch.set_grad_enabled(False)
sizes = {"hidden_size": 32, "num_filters": 4, "codebook_size": 64, "codebook_dim": 16, "upsample_groups": 32}
sizes |= {"vector_quantization_hidden_dimension": 16, "num_hidden_layers": 2, "intermediate_size": 64}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
model = MimiModel(MimiConfig(**sizes)).eval()
for name, tensor in model.state_dict().items():
    tensor.normal_() if name.endswith("embed_sum") else None
    tensor.add_(0.1 * torch.randn_like(tensor)) if tensor.is_floating_point() and "codebook" not in name else None
small = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 64, "num_lstm_layers": 1}
encodec = EncodecModel(EncodecConfig(**small, target_bandwidths=[1.8])).eval()
for name, tensor in encodec.state_dict().items():
    tensor.normal_() if name.endswith(".embed") else tensor.mul_(2) if name.endswith("weight.original0") else None
sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "n_codebooks": 4, "codebook_size": 64, "codebook_dim": 4}
dac = DacModel(DacConfig(**sizes)).eval()
for name, tensor in dac.state_dict().items():
    tensor.normal_() if name.endswith("codebook.weight") else tensor.add_(0.1 * torch.randn_like(tensor))


def differing(encode, hop, frames, masked):
    clip = 0.3 * torch.randn(1, 1, frames * hop - hop // 3)
    padded, mask = F.pad(clip, (0, 4 * hop)), F.pad(torch.ones_like(clip), (0, 4 * hop)).bool()
    alone, more = encode(clip), encode(padded, **({"padding_mask": mask} if masked else {}))
    more = more.reshape(1, -1, more.shape[-1])[..., : alone.shape[-1]]
    return (alone.reshape(1, -1, alone.shape[-1]) != more).any(1).nonzero()[:, 1].tolist()


seen = {}
for masked in (False, True):
    for frames in (3, 12):
        seen["encodec", frames, masked] = differing(lambda *a, **k: encodec.encode(*a, **k).audio_codes, 320, frames, masked)
    tries = [differing(lambda *a, **k: model.encode(*a, **k).audio_codes, 1920, 6, masked) for _ in range(8)]
    seen["mimi", 6, masked] = sorted({frame for each in tries for frame in each})
seen["dac", 12, False] = differing(lambda *a, **k: dac.encode(*a, **k).audio_codes, 512, 12, False)
print(seen)
assert 0 in seen["encodec", 3, False] and 0 in seen["encodec", 3, True] and 0 not in seen["encodec", 12, True]
assert seen["mimi", 6, False] == seen["mimi", 6, True] == [5], "Mimi's last frame"
assert seen["dac", 12, False] and min(seen["dac", 12, False]) > 2, "DAC's last frames"
PYTHON
