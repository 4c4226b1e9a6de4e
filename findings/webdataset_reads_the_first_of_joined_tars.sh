#!/usr/bin/env bash
# Guess: of shards that were joined with `cat a.tar b.tar > ab.tar` WebDataset gives all samples, as of joined .gz or .jsonl files, or it says that
# something follows the tar's end mark.
# Seen (webdataset 1.0.2, Python's tarfile beneath it): the samples of the first alone, and no word of the rest. (tarfile has ignore_zeros=True
# for this; WebDataset does not pass it.) A check that counts samples against a list is what notices.
# Output seen: 1.0.2 keys ['a0', 'a1', 'a2', 'a3'] members 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import io
import sys
import tarfile
from pathlib import Path

import webdataset

folder = Path(sys.argv[1])
for shard in "ab":
    with tarfile.open(folder / f"{shard}.tar", "w") as tar:
        for number in range(4):
            member = tarfile.TarInfo(f"{shard}{number}.txt")
            member.size = len(b"words")
            tar.addfile(member, io.BytesIO(b"words"))
(folder / "ab.tar").write_bytes((folder / "a.tar").read_bytes() + (folder / "b.tar").read_bytes())
keys = [sample["__key__"] for sample in webdataset.WebDataset(str(folder / "ab.tar"), shardshuffle=False)]
with tarfile.open(folder / "ab.tar", ignore_zeros=True) as tar:
    members = len(tar.getmembers())
print(webdataset.__version__, "keys", keys, "members", members)
assert keys == ["a0", "a1", "a2", "a3"] and members == 8, "what WebDataset reads of joined tars has changed"
PYTHON
