#!/usr/bin/env bash
# Guess: MimiModel.encode(use_streaming=True) with its caches takes chunks of any length and gives the codes of the whole.
# Seen (transformers 5.24.0, torch 2.13.0, tiny random weights): only for chunks that are multiples of a frame (1,920 samples). Others give wrong codes, and fewer of them,
# without a word, or fail in a convolution that is wider than what is left of a chunk.
# Output seen: chunk: (frames of 24, of which wrong) {1920: (24, 0), 3840: (24, 0), 2880: (16, 15), 12000: (23, 17)}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import MimiConfig, MimiModel

torch.manual_seed(0)
torch.set_grad_enabled(False)
sizes = {"hidden_size": 32, "num_filters": 4, "codebook_size": 64, "codebook_dim": 16, "upsample_groups": 32}
sizes |= {"vector_quantization_hidden_dimension": 16, "num_hidden_layers": 2, "intermediate_size": 64}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
model = MimiModel(MimiConfig(**sizes)).eval()
for name, tensor in model.state_dict().items():
    tensor.normal_() if name.endswith("embed_sum") else None
    tensor.add_(0.1 * torch.randn_like(tensor)) if tensor.is_floating_point() and "codebook" not in name else None
wave = 0.3 * torch.randn(1, 1, 24 * 1920)
whole = model.encode(wave, num_quantizers=4).audio_codes
seen = {}
for chunk in (1920, 3840, 2880, 12000):
    caches, parts = {"encoder_cache": None, "padding_cache": None}, []
    for first in range(0, wave.shape[-1], chunk):
        out = model.encode(wave[..., first : first + chunk], num_quantizers=4, use_streaming=True, **caches)
        caches = {"encoder_cache": out.encoder_cache, "padding_cache": out.padding_cache}
        parts.append(out.audio_codes)
    codes = torch.cat(parts, -1)
    wrong = int((codes != whole[..., : codes.shape[-1]]).any(1).sum())
    seen[chunk] = (codes.shape[-1], wrong)
print("chunk: (frames of 24, of which wrong)", seen)
assert seen[1920] == seen[3840] == (24, 0), "whole frames"
assert all(seen[chunk][0] < 24 and seen[chunk][1] > 5 for chunk in (2880, 12000)), "other chunks are right now"
PYTHON
