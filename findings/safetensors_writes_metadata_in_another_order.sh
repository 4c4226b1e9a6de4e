#!/usr/bin/env bash
# Guess: safetensors writes equal tensors and equal metadata to equal bytes.
# Seen (safetensors 0.8.0): metadata of several keys are written in another order in each process (a hash map with a random seed), so
# equal runs leave other bytes and a sha256 of the file names nothing. Metadata of one key are always the same bytes.
# Output seen: files of 8 processes: 1 with one key, 8 with six
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
for keys in 1 6; do
  for _ in $(seq 8); do
    "$folder/venv/bin/python" - "$keys" <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

metadata = {f"key{number}": "x" for number in range(int(sys.argv[1]))}
print(hashlib.sha256(save({"a": np.zeros(2, np.float32)}, metadata=metadata)).hexdigest())
PYTHON
  done | sort -u | wc -l >"$folder/$keys"
done
echo "files of 8 processes: $(cat "$folder/1") with one key, $(cat "$folder/6") with six"
[ "$(cat "$folder/1")" = 1 ] && [ "$(cat "$folder/6")" != 1 ]
