#!/usr/bin/env bash
# Guess: JanusVQVAE.encode gives the code whose entry its decode puts nearest to the latent, as deepseek-ai/Janus does.
# Seen (transformers 5.24.0, torch 2.13.0, tiny random weights): its encode compares latents and entries as they are, its decode reads entries brought to length 1. The source
# (janus/models/vq_model.py, codebook_l2_norm=True) brings both to length 1 before it compares.
# Output seen: other codes than the nearest by angle: 0.98; with entries of length 1: none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional as F
from transformers import JanusVQVAE, JanusVQVAEConfig

torch.manual_seed(0)
torch.set_grad_enabled(False)
sizes = {"num_embeddings": 64, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1]}
model = JanusVQVAE(JanusVQVAEConfig(num_res_blocks=1, num_patches=4, **sizes)).eval()
model.quantize.embedding.weight.normal_()
pixels = 2 * torch.rand(8, 3, 8, 8) - 1
theirs = model.encode(pixels).image_tokens.view(8, 16)
latents = model.quant_conv(model.encoder(pixels)).flatten(2).transpose(1, 2)
nearest = (F.normalize(latents, dim=-1) @ F.normalize(model.quantize.embedding.weight, dim=-1).T).argmax(-1)
share = float((theirs != nearest).float().mean())
model.quantize.embedding.weight.copy_(F.normalize(model.quantize.embedding.weight, dim=-1))
same = torch.equal(model.encode(pixels).image_tokens.view(8, 16), nearest)
print(f"other codes than the nearest by angle: {share:.2f}; with entries of length 1: {'none' if same else 'some'}")
assert share > 0.1, "encode brings entries to length 1 now"
assert same
PYTHON
