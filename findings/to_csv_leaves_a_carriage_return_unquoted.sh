#!/usr/bin/env bash
# Guess: what DataFrame.to_csv writes read_csv reads back: a cell with a line end of any kind is put in quotation marks.
# Seen (pandas 3.1.1): a cell with "\n" is, one with a lone "\r" (text from old Macs, progress bars, some PDF tools) is not; read_csv takes it for
# the end of a row, and Python's csv does too. Two rows come back as three, one of them with an empty cell. lineterminator="\r\n" quotes it.
# Output seen: 3.1.1 'label,text\nx,one\rtwo\ny,three\n' [['x', 'one'], ['two', ''], ['y', 'three']]
# 'label,text\r\nx,"one\rtwo"\r\ny,three\r\n'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pandas==3.1.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pandas

frame = pandas.DataFrame({"label": ["x", "y"], "text": ["one\rtwo", "three"]})
written = frame.to_csv(index=False)
back = pandas.read_csv(io.StringIO(written)).fillna("").to_dict("split")["data"]
quoted = frame.to_csv(index=False, lineterminator="\r\n")
print(pandas.__version__, repr(written), back, repr(quoted))
assert back == [["x", "one"], ["two", ""], ["y", "three"]], "what to_csv does with a carriage return has changed"
assert pandas.read_csv(io.StringIO(quoted)).equals(frame), "lineterminator does not quote a carriage return"
PYTHON
