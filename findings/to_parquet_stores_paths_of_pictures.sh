#!/usr/bin/env bash
# Guess: Dataset.to_parquet of a column of Image writes the pictures, as save_to_disk and push_to_hub do: the file can go elsewhere.
# Seen (datasets 5.2.0): it writes {"bytes": null, "path": ...} with the path on the writer's machine, no picture and no warning; the file opens
# here and fails elsewhere. save_to_disk of the same dataset has the bytes. What helps: read the bytes into the column before it is written.
# Output seen: 5.2.0 bytes of the picture: {'to_parquet': None, 'save_to_disk': 75} path within the folder written from: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import datasets
import pyarrow.parquet
from PIL import Image

datasets.disable_progress_bars()
folder = Path(sys.argv[1])
Image.new("RGB", (8, 8), "red").save(folder / "red.png")
pictures = datasets.Dataset.from_dict({"image": [str(folder / "red.png")]}).cast_column("image", datasets.Image())
pictures.to_parquet(folder / "pictures.parquet")
pictures.save_to_disk(folder / "pictures")
(cell,) = pyarrow.parquet.read_table(folder / "pictures.parquet")["image"].to_pylist()
(saved,) = datasets.load_from_disk(folder / "pictures").cast_column("image", datasets.Image(decode=False))["image"]
sizes = {"to_parquet": cell["bytes"] and len(cell["bytes"]), "save_to_disk": saved["bytes"] and len(saved["bytes"])}
print(datasets.__version__, "bytes of the picture:", sizes, "path within the folder written from:", cell["path"] == str(folder / "red.png"))
assert sizes["to_parquet"] is None and sizes["save_to_disk"] and cell["path"], "what to_parquet writes of a picture has changed"
PYTHON
