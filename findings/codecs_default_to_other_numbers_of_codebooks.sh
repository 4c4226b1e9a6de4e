#!/usr/bin/env bash
# Guess: codecs of transformers give all their codebooks when nobody says how many.
# Seen (transformers 5.24.0, torch 2.13.0, tiny random weights): Mimi gives all of its 32, DAC all of its 9, EnCodec at 24 kHz 2 of its 32: the smallest bandwidth (1.5 kbit/s).
# Output seen: {'encodec': 2, 'mimi': 32, 'dac': 9}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

torch.set_grad_enabled(False)
wave, books = torch.randn(1, 1, 7680), {}
small = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1}
books["encodec"] = EncodecModel(EncodecConfig(**small)).eval().encode(wave).audio_codes.shape[2]
sizes = {"hidden_size": 32, "num_filters": 4, "codebook_size": 64, "codebook_dim": 16, "upsample_groups": 32}
sizes |= {"vector_quantization_hidden_dimension": 16, "num_hidden_layers": 1, "intermediate_size": 64}
heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
books["mimi"] = MimiModel(MimiConfig(**sizes, **heads)).eval().encode(wave).audio_codes.shape[1]
sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "codebook_size": 64, "codebook_dim": 4}
books["dac"] = DacModel(DacConfig(**sizes)).eval().encode(wave).audio_codes.shape[1]
print(books)
assert books == {"encodec": 2, "mimi": 32, "dac": 9}, "a default has changed"
PYTHON
