"""Tables as their writers meant them: what a known writer wrote is read back equal, or refused, or told;
never glued, cut or dropped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import readers, tables
from muomni.data.check.checker import check
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.errors import DataError, DataNote


def read(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows, and all that was refused or told, as `line: reason: words`."""
    good: list[dict[str, str]] = []
    said: list[str] = []
    for number, row in tables.rows(path):
        if isinstance(row, DataError):
            said.append(f"{number}: {row.reason}: {row}")
        else:
            good.append(row)
    return good, said


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tables._dialect.cache_clear()
    return path


# 1. Writers

ALPHABET = "ab \"\\,;|\t\n\r'#éx1."
ODD = [
    '"',
    '""',
    '"who is',
    'he said "no"',
    "C:\\dir\\",
    "a, b",
    '"a"',
    "",
    "\\N",
    "1.5",
    "-3",
    "#x",
    " x",
    "x ",
    "a\nb",
    "\ta",
]
CELLS = st.text(ALPHABET, max_size=8) | st.sampled_from(ODD)
ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6)
)
STYLES: dict[str, dict[str, Any]] = {
    "minimal": {"quoting": csv.QUOTE_MINIMAL},
    "all": {"quoting": csv.QUOTE_ALL},
    "nonnumeric": {"quoting": csv.QUOTE_NONNUMERIC},
    "escape": {"quoting": csv.QUOTE_MINIMAL, "doublequote": False, "escapechar": "\\"},
    "escape_all": {"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"},
    "none_escape": {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
    "none": {"quoting": csv.QUOTE_NONE, "quotechar": None},
}


@pytest.mark.parametrize("writer", ["csv", "pandas"])
@pytest.mark.parametrize("style", STYLES)
@given(
    ROWS,
    st.sampled_from(",\t;|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=150)
def test_what_a_writer_wrote_is_read_back_or_told(
    tmp_path_factory: pytest.TempPathFactory,
    writer: str,
    style: str,
    rows: list[list[str]],
    delimiter: str,
    end: str,
    encoding: str,
) -> None:
    names = ["wav", "text", "c", "d"][: len(rows[0])]
    path = tmp_path_factory.getbasetemp() / ("w.tsv" if delimiter == "\t" else "w.csv")
    try:
        if writer == "csv":
            stream = io.StringIO()
            out = csv.writer(stream, delimiter=delimiter, lineterminator=end, **STYLES[style])
            out.writerows([names, *rows])
            path.write_bytes(stream.getvalue().encode(encoding))
        else:
            options = {key: value for key, value in STYLES[style].items() if value is not None}
            frame = pandas.DataFrame(rows, columns=names)
            frame.to_csv(path, sep=delimiter, index=False, lineterminator=end, encoding=encoding, **options)
    except csv.Error:
        return  # no writer can write these cells so
    tables._dialect.cache_clear()
    try:
        good, said = read(path)
    except DataError:
        return
    held = [row for row in rows if any(cell.strip() for cell in row)]  # rows of empty cells hold nothing
    assert [list(row.values()) for row in good] == held or said, path.read_bytes()


@pytest.mark.parametrize("writer", ["csv", "pandas"])
@pytest.mark.parametrize("style", ["minimal", "all", "nonnumeric", "escape", "escape_all"])
def test_ordinary_tables_of_each_writer_are_read_as_they_are(tmp_path: Path, writer: str, style: str) -> None:
    """Nothing is refused, and told only where backslashes are at play: what was written is read, with the
    lines on which rows begin."""
    rows = [
        ["a.wav", "plain"],
        ["b.wav", 'he said "no", twice'],
        ["c.wav", "two\nlines, one cell"],
        ["d.wav", "end"],
    ]
    for delimiter, name in ((",", "t.csv"), ("\t", "t.tsv"), (";", "t.csv"), ("|", "t.csv")):
        path = tmp_path / name
        if writer == "csv":
            with path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream, delimiter=delimiter, **STYLES[style]).writerows([["wav", "text"], *rows])
        else:
            pandas.DataFrame(rows, columns=["wav", "text"]).to_csv(
                path, sep=delimiter, index=False, **STYLES[style]
            )
        tables._dialect.cache_clear()
        found = list(tables.rows(path))
        assert [(number, list(row.values())) for number, row in found if isinstance(row, dict)] == list(
            zip([2, 3, 4, 6], rows, strict=True)
        )
        assert not [row for _, row in found if isinstance(row, DataError) and not isinstance(row, DataNote)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # QUOTE_NONE with an escapechar: a cell of a line end, and a line that is a blank one else
        (b"wav,text\r\n,\\\n\r\n", [["", "\n"]]),
        (b"wav;text\n;\\\n\n#;\\\n\n", [["", "\n"], ["#", "\n"]]),
        (b"wav,text\n#,#\\\n\n", [["#", "#\n"]]),
        # QUOTE_NONE: cells of quotation marks alone, and cells that look quoted
        (b'wav;text\n;""""\n', [["", '""""']]),
        (b'wav\r\n""""""""\r\n', [['""""""""']]),
        (b'wav;text\na;"x ""y"""\n', [["a", '"x ""y"""']]),
        # backslashes before marks, rows that doubled marks would glue
        (b'wav\r\n",\\""\r\n\\"\r\n', [[',"'], ['"']]),
        (b'wav\n",\n\\""\n\\"\n""\n', [[',\n"'], ['"'], [""]]),
        (b'wav\ttext\r\n"\t\\""\t\r\n\\"\t\r\n\t\\"\\"\r\n', [['\t"', ""], ['"', ""], ["", '""']]),
        # QUOTE_ALL with an escapechar
        (b'"wav"\n"\n\n\\""\n"\n\\""\n""\n', [['\n\n"'], ['\n"'], [""]]),
        # names of columns that hold other delimiters
        (b'a b;"x""y";c,;"d;"\n,;;;\n', [[",", "", "", ""]]),
        (b"a b|x,\n1.5|a, b\n", [["1.5", "a, b"]]),
        (b'a b,x\\"y,c\\,\r\n,-3, \\"\\, \r\n', [["", "-3", ' ", ']]),
        (b'a b;"x""y";c,;"d;"\r\n"""""";,.x1;" ;\nax"; ,\'\r\n', [['""', ",.x1", " ;\nax", " ,'"]]),
    ],
)
def test_what_can_be_read_in_two_ways_is_told(
    tmp_path: Path, content: bytes, expected: list[list[str]]
) -> None:
    """What writers wrote of these cells makes whole rows of other cells in another dialect."""
    try:
        good, said = read(table(tmp_path, content))
    except DataError:
        return
    assert said or [list(row.values()) for row in good] == expected


def test_what_can_be_read_in_two_ways_has_its_line(tmp_path: Path) -> None:
    _, said = read(table(tmp_path, 'wav\ttext\na.wav\tplain\nb.wav\t"say ""hi"""\n', "t.tsv"))
    assert [line.partition(": table")[0] for line in said] == ["3: ambiguous"]
    assert read(table(tmp_path, '"wav"\t"text"\n"a.wav"\t"say ""hi"""\n', "t.tsv")) == (
        [{"wav": "a.wav", "text": 'say "hi"'}],
        [],
    )
    assert (
        read(table(tmp_path, 'wav,text\na.wav,"say ""hi"""\nb.wav,"one, two"\n'))[1] == []
    )  # the comma settles it


def test_pandas_reads_the_same(tmp_path: Path) -> None:
    path = table(tmp_path, 'wav,text,n\na.wav,"one, two",1.50\nb.wav,"say ""hi""",2\nc.wav,x,\n')
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert read(path) == (frame.to_dict("records"), [])


# 2. Files as people have them


def test_ten_rows_of_common_voice_are_ten(tmp_path: Path) -> None:
    said = [
        "all night",
        '"who is there',
        "nobody",
        '"come in',
        "a voice",
        '"good evening," he said',
        'a 5" disk',
        '"',
        '""',
    ]
    path = table(
        tmp_path,
        "path\tsentence\tlocale\n" + "".join(f"{n}.mp3\t{text}\ten\n" for n, text in enumerate(said)),
        "validated.tsv",
    )
    good, told = read(path)
    assert [row["sentence"] for row in good] == said
    assert not told


def test_quotation_marks_of_people_in_a_csv(tmp_path: Path) -> None:
    path = table(
        tmp_path, 'wav,text\na.wav,one\nb.wav,"open it\nc.wav,and then\nd.wav,"close it\ne.wav,a 5" disk\n'
    )
    assert [row["text"] for row in read(path)[0]] == ["one", '"open it', "and then", '"close it', 'a 5" disk']


def test_marks_behind_a_backslash(tmp_path: Path) -> None:
    path = table(tmp_path, 'wav,text\na.wav,"he said \\"no\\", twice"\nb.wav,"C:\\\\new"\nc.wav,plain\n')
    assert [row["text"] for row in read(path)[0]] == ['he said "no", twice', "C:\\new", "plain"]
    path = table(
        tmp_path, 'wav,text\na.wav,"he said \\"no\\""\nb.wav,"C:\\new"\n'
    )  # a writer that escapes marks alone
    assert [row["text"] for row in read(path)[0]] == ['he said "no"', "C:\\new"]
    path = table(
        tmp_path, 'wav,text\na.wav,"C:\\dir\\"\nb.wav,"x, y"\n'
    )  # a path in a table of doubled marks
    assert [row["text"] for row in read(path)[0]] == ["C:\\dir\\", "x, y"]


def test_glued_rows_are_refused_with_their_lines(tmp_path: Path) -> None:
    """A mark that opens at a row's end and closes three rows on: whether it is one row or four, nobody can
    tell."""
    lines = 'wav,text\na.wav,"one, two"\nb.wav,"open\nc.wav,lost\nd.wav,"\ne.wav,five\n'
    good, told = read(table(tmp_path, lines))
    assert [row["wav"] for row in good] == ["a.wav", "e.wav"]
    assert len(told) == 1
    assert told[0].startswith("3: bad_row: table: lines 3 to 5 may be one row")


def test_a_mark_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    good, told = read(
        table(tmp_path, 'wav,text\na.wav,"one, two"\nb.wav,"open, here\nc.wav,three\nd.wav,four\n')
    )
    assert [row["wav"] for row in good] == ["a.wav", "c.wav", "d.wav"]
    assert [line.partition(" (")[0] for line in told] == ["3: bad_row: table: a quotation mark is not closed"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("wav;text\na.wav;one, two\nb.wav;1,5\n", "t.csv"),
        ("sep=;\nwav;text\na.wav;one, two\nb.wav;1,5\n", "t.csv"),
        ('"sep=|"\nwav|text\na.wav|one, two\nb.wav|1,5\n', "t.csv"),
        ("wav\ttext\na.wav\tone, two\nb.wav\t1,5\n", "t.csv"),
        ("wav|text\na.wav|one, two\nb.wav|1,5\n", "t.psv"),
        ('wav,text\na.wav,"one, two"\nb.wav,"1,5"\n', "t.tsv"),
        ("wav,text\ra.wav,\"one, two\"\rb.wav,\"1,5\"\r", "t.csv"),
        ("\ufeffwav,text\r\na.wav,\"one, two\"\r\nb.wav,\"1,5\"\r\n", "t.csv"),
        ('wav, text\na.wav, "one, two"\nb.wav, "1,5"\n', "t.csv"),
        (",wav,text\n0,a.wav,\"one, two\"\n1,b.wav,\"1,5\"\n", "t.csv"),
        ("wav,text,\na.wav,\"one, two\",\nb.wav,\"1,5\",\n", "t.csv"),
        ("wav\ttext\na.wav\tone, two\nb.wav\t1,5\n".encode("utf-16"), "t.tsv"),
        ("wav\ttext\r\na.wav\tone, two\r\nb.wav\t1,5\r\n".encode("utf-16"), "t.csv"),
    ],
)  # fmt: skip
def test_tables_of_spreadsheets(tmp_path: Path, content: str | bytes, name: str) -> None:
    good, told = read(table(tmp_path, content, name))
    assert [(row["wav"], row["text"]) for row in good] == [("a.wav", "one, two"), ("b.wav", "1,5")]
    assert not told


def test_a_column_without_a_name_is_kept_by_its_place(tmp_path: Path) -> None:
    assert read(table(tmp_path, ",wav,\n0,a.wav,x\n1,b.wav,\n"))[0] == [
        {"column 1": "0", "wav": "a.wav", "column 3": "x"},
        {"column 1": "1", "wav": "b.wav"},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("wav,text,text\na.wav,b,c\n", r"t\.csv:1: expected each column once, got 'text' twice"),
        (
            "a.wav,hello\nb.wav,there\n",
            r"t\.csv:1: expected the columns' names in the first line, got a row: 'a\.wav'",
        ),
        ("wav\ttext\na.wav\tx\n".encode("utf-16")[2:], "got UTF-16LE without its mark"),
        ("wav\ttext\na.wav\tx\n".encode("utf-16") + b"\0", "expected UTF-16, as its mark says"),
        ("caf\u00e9,text\n".encode("latin-1"), r"t\.csv:1: the header: line: expected UTF-8, got byte 0xe9"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "a pointer of git-lfs .*git lfs pull",
        ),
    ],
)
def test_a_file_that_must_not_be_guessed_at_is_refused(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        read(table(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (
            "wav,text\na.wav,x\nb.wav,one, two\nc.wav,y\n",
            ["3"],
            "expected 2 cells (wav, text), got 3 (a cell that holds commas",
        ),
        ("wav,text\na.wav,x\nb.wav\nc.wav,y\n", ["3"], "expected 2 cells (wav, text), got 1"),
        ("wav,text\na.wav,x\n# not now\nc.wav,y\n", ["3"], "a comment?"),
        ("wav,text\na.wav,x\nb.wav,\0\nc.wav,y\n", ["3"], "got a NUL byte"),
        (b"wav,text\na.wav,x\nb.wav,caf\xe9\nc.wav,y\n", ["3"], "expected UTF-8, got byte 0xe9"),
        ('wav,text\na.wav,"x, y"\nb.wav,"a"b\nc.wav,y\n', ["3"], "behind a closing quotation mark"),
        ("wav,text\na.wav,x\nb.wav,y,,\nc.wav,z,,\n", ["3"], "repaired"),
        ("wav,text\na.wav,x\nb.wav,y\r\nc.wav,z\r\n", ["3"], "repaired"),
        ("# about\n# more\nwav,text\na.wav,x\n", ["1"], "2 lines of comments before the header"),
        ("#wav,text\na.wav,x\n", ["1"], "names stand behind a #"),
        ('wav\ttext\na.wav\t"one, two"\nb.wav\tx\n', ["2"], "they are read as letters"),
        ('wav,text\na.wav,"one"\nb.wav,x\n', ["2"], "they are read as quoting"),
        (
            "wav,text\na.wav,x\nb.wav,nan\nc.wav,nan\n",
            ["3"],
            "text holds 'nan', which programs write for nothing",
        ),
    ],
)
def test_what_is_odd_is_refused_or_told_with_its_line(
    tmp_path: Path, content: str | bytes, lines: list[str], expected: str
) -> None:
    name = "t.tsv" if isinstance(content, str) and "\t" in content else "t.csv"
    good, said = read(table(tmp_path, content, name))
    assert [line.partition(":")[0] for line in said] == lines
    assert expected in said[0]
    assert {"wav", "text"} == good[0].keys()
    assert len(good) == (
        3 if "repaired" in said[0] and "header" not in said[0] and "#" not in said[0] else len(good)
    )


def test_far_marks_are_evidence_too(tmp_path: Path) -> None:
    """The first quoted cell stands behind ten thousand plain rows."""
    plain = "".join(f"{n}.wav\tplain {n}\n" for n in range(10_000))
    good, told = read(table(tmp_path, f'wav\ttext\n{plain}a.wav\t"say ""hi"""\n', "t.tsv"))
    assert good[-1]["text"] == 'say "hi"'
    assert len(good) == 10_001
    assert [line.partition(": table")[0] for line in told] == ["10002: ambiguous"]


def test_every_line_is_told_right_in_a_long_table(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "wav,text"
        for n in range(3000):
            yield f'{n}.wav,"line {n}\nand, more"' if n % 3 == 0 else f"{n}.wav,line {n}"

    path = table(tmp_path, "\n".join(lines()) + "\n")
    texts = path.read_text().split("\n")
    for number, row in tables.rows(path):
        assert isinstance(row, dict)
        assert texts[number - 1].startswith(f"{row['wav']},")


def test_data_check_and_a_run_hear_of_it(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"x")
    table(tmp_path, "wav,text\na.wav,one,\nb.wav,two\n")
    report = check(Source(path="t.csv"), tmp_path)
    assert report.counts["repaired"] == 1
    assert any("t.csv:2: table: 3 cells under 2 names" in line for line in report.warnings)
    quarantine = Quarantine()
    assert len(list(readers.read(Source(path="t.csv"), tmp_path, quarantine))) == 2
    assert quarantine.total == 0
    assert "t.csv:2: table: 3 cells under 2 names" in quarantine.notes[0]
