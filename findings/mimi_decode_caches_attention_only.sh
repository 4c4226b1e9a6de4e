#!/usr/bin/env bash
# Guess: MimiModel.decode with its decoder_cache gives the samples of the whole, chunk by chunk.
# Seen (transformers 5.24.0, torch 2.13.0, tiny random weights): from the second chunk on the samples are others, as the cache holds attention only, no convolution's past.
# Six frames decoded before and cut off again suffice for the convolutions, but attention reaches further back. Exact: one
# frame before for the unfolding, attention from the cache, and the last 8 states before decoder_seanet.
# Output seen: error: cached 9e-01, six frames before 2e-02, by states 7e-07
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
codes = torch.randint(64, (1, 4, 24))
whole = model.decode(codes).audio_values


def error(pieces):
    return float((torch.cat(pieces, -1) - whole).abs().max() / whole.abs().max())


cached, before, states, cache, own, past = [], [], [], None, None, None
for first in range(0, 24, 4):
    out = model.decode(codes[..., first : first + 4], decoder_cache=cache, use_cache=True)
    cache = out.decoder_cache
    cached.append(out.audio_values)
    start = max(0, first - 6)
    before.append(model.decode(codes[..., start : first + 4]).audio_values[..., (first - start) * 1920 :])
    latents = model.quantizer.decode(codes[..., max(0, first - 1) : first + 4])
    unfolded = model.decoder.upsample(latents)[..., 2 if first else 0 :]
    out = model.decoder.decoder_transformer(unfolded.transpose(1, 2), cache=own, use_cache=True)
    own, new = out.cache, out.last_hidden_state.transpose(1, 2)
    new = new if past is None else torch.cat([past, new], -1)
    states.append(model.decoder.decoder_seanet(new)[..., -4 * 1920 :])
    past = new[..., -8:]
print(f"error: cached {error(cached):.0e}, six frames before {error(before):.0e}, by states {error(states):.0e}")
assert error(cached) > 0.1, "chunks by the cache are right now"
assert error(before) > 1e-4, "attention does not matter"
assert error(states) < 1e-5
PYTHON
