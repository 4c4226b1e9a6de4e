#!/usr/bin/env bash
# Guess: a tokenizer.json's added token has the id that stands beside it, or loading fails.
# Seen (tokenizers 0.23.3): if its id is not the next free one (tokens between were removed, or ids were reserved for other uses), it silently gets
# the next free one: 4 instead of 10. The embedding's row that was trained for it is never used, another's is; to_str() writes the new id.
# Output seen: 0.23.3 ids [0, 3, 4] written back as {'<image>': 3, '<audio>': 4}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import json

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[unk]": 2}, unk_token="[unk]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
file = json.loads(tokenizer.to_str())
flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
file["added_tokens"] = [{"id": 3, "content": "<image>", **flags}, {"id": 10, "content": "<audio>", **flags}]
loaded = Tokenizer.from_str(json.dumps(file))
ids = loaded.encode("a <image> <audio>").ids
written = {token["content"]: token["id"] for token in json.loads(loaded.to_str())["added_tokens"]}
print(tokenizers.__version__, "ids", ids, "written back as", written)
assert ids == [0, 3, 4] and written == {"<image>": 3, "<audio>": 4}, "which id an added token beyond a hole gets has changed"
PYTHON
