"""Every format in, and hostile files: each bad row is counted with its line, nothing else is lost."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import formats, readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Source
from muomni.errors import ConfigError, DataError, UserError


def read(folder, source):
    quarantine = Quarantine()
    return list(
        readers.read(source if isinstance(source, Source) else Source(path=source), folder, quarantine)
    ), quarantine


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def test_text_lines_and_paragraphs(tmp_path):
    write(tmp_path, "a.txt", "\ufeffone\r\n\r\n two \nthree")
    assert [s.text for s in read(tmp_path, "a.txt")[0]] == ["one", " two ", "three"]
    write(tmp_path, "b.txt", "\n\n".join(f"paragraph {i}\n" + "x" * 700 for i in range(5)))
    documents = [s.text for s in read(tmp_path, Source(path="b.txt", paragraphs=True))[0]]
    assert len(documents) == 3
    assert all(len(d) <= 2000 for d in documents)
    assert "\n\n".join(documents) == (tmp_path / "b.txt").read_text().replace("\n\n\n", "\n\n")


def test_text_and_question_jsonl(tmp_path):
    write(tmp_path, "a.jsonl", '{"text": "one"}\n\n{"question": "1+1?", "answer": "2"}\n')
    assert [(s.text, s.task) for s in read(tmp_path, "a.jsonl")[0]] == [("one", "text"), ("1+1?\n2", "text")]


def test_csv_orders_bom_crlf_and_quoted_commas(tmp_path):
    for name in ("a.wav", "b.wav"):
        write(tmp_path, name, b"x")
    write(tmp_path, "asr.csv", '\ufeffwav,text\r\na.wav,"yes, it ""is"""\r\nb.wav,no\r\n')
    samples, quarantine = read(tmp_path, "asr.csv")
    assert [(Path(s.audios[0].path).name, s.answer, s.task) for s in samples] == [
        ("a.wav", 'yes, it "is"', "transcribe"),
        ("b.wav", "no", "transcribe"),
    ]
    assert not quarantine.total
    write(tmp_path, "tts.csv", "text,wav\nhello,b.wav\n")
    spoken = read(tmp_path, "tts.csv")[0][0]
    assert (spoken.task, spoken.question, [Path(p.path).name for p in spoken.speech], spoken.audios) == (
        "speak",
        "hello",
        ["b.wav"],
        [],
    )


def test_captions_with_a_root_and_a_prompt(tmp_path):
    write(tmp_path, "img/a.png", b"x")
    write(tmp_path, "captions.json", '[{"image": "a.png", "caption": "a cat"}]')
    (sample,) = read(tmp_path, Source(path="captions.json", root="img", prompt="Describe it."))[0]
    assert (sample.task, sample.question, sample.answer) == ("caption", "Describe it.", "a cat")
    assert sample.images[0].path == str(tmp_path / "img" / "a.png")
    assert sample.group == "a.png"  # not the place of this machine: the split must not depend on it


def test_image_folders(tmp_path):
    write(tmp_path, "set/red_rose/1.png", b"x")
    write(tmp_path, "set/daisy/2.jpg", b"x")
    assert sorted(s.answer for s in read(tmp_path, "set")[0]) == ["daisy", "red rose"]
    write(
        tmp_path,
        "set/metadata.jsonl",
        '{"file_name": "daisy/2.jpg", "text": "a white daisy"}\n{"file_name": "no.jpg", "text": "x"}\n',
    )
    samples, quarantine = read(tmp_path, "set")
    assert [s.answer for s in samples] == ["a white daisy"]
    assert quarantine.counts == {"missing": 1}


def template(**more):
    question = [{"audio": "{audio}", "start": "{s}"}, "which?"]
    return Source(
        path="d.jsonl",
        id="{id}",
        group="{speaker}",
        task="digit",
        messages=[{"user": question}, {"assistant": "{slots.n}"}],
        **more,
    )


def test_rows_fill_a_template_filter_and_name_the_missing_field(tmp_path):
    write(tmp_path, "a.wav", b"x")
    good = {"id": 1, "speaker": "ann", "audio": "a.wav", "s": 0.5, "slots": {"n": 7}, "lang": "en"}
    rows = [
        good,
        {**good, "id": 2, "lang": "de"},
        {**good, "id": 3, "speaker": None},
        {**good, "id": 4, "slots": {}},
    ]
    write(tmp_path, "d.jsonl", "\n".join(map(json.dumps, rows)))
    samples, quarantine = read(tmp_path, template(where={"lang": ["en", "fr"]}))
    (sample,) = samples
    assert (sample.id, sample.group, sample.task, sample.answer, sample.audios[0].start) == (
        "1",
        "ann",
        "digit",
        "7",
        0.5,
    )
    assert quarantine.counts == {"bad_row": 2}
    first, second = quarantine.examples["bad_row"]
    assert "d.jsonl:3" in first
    assert "'speaker'" in first
    assert "d.jsonl:4" in second
    assert "'slots.n'" in second


def test_rows_expand_a_list(tmp_path):
    write(tmp_path, "a.png", b"x")
    write(tmp_path, "c.jsonl", '{"id": "p", "path": "a.png", "captions": ["one", "two"]}')
    source = Source(
        path="c.jsonl", messages=[{"user": [{"image": "{path}"}]}, {"assistant": "{item}"}], expand="captions"
    )
    assert [(s.id, s.answer, s.group) for s in read(tmp_path, source)[0]] == [
        ("p#0", "one", "a.png"),
        ("p#1", "two", "a.png"),
    ]


def test_bad_lines_are_counted_by_line_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"not json",
        b"3",
        b'{"text": ""}',
        b'{"text": "\xff"}',
        b'{"txt": "x"}',
        b'{"text": "\\ud800"}',
        b"[" * 99999,
    ]
    lines += [b'{"path": "a.wav", "text": "x"}', b"9" * 5000, b'{"text": "also good"}']
    write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines))
    samples, quarantine = read(tmp_path, "a.jsonl")
    assert [s.text for s in samples] == ["good", "also good"]
    assert quarantine.counts == {"bad_row": 7, "empty": 1, "undecodable": 1}
    assert ":4:" in quarantine.examples["empty"][0]
    assert ":5:" in quarantine.examples["undecodable"][0]


def test_a_media_manifest_is_never_read_as_text(tmp_path):
    write(tmp_path, "speech.jsonl", '{"path": "a.wav", "text": "hello"}')
    samples, quarantine = read(tmp_path, "speech.jsonl")
    assert samples == []
    assert "a.wav: expected a file" in quarantine.examples["missing"][0]
    write(tmp_path, "speech.jsonl", '{"path": "a.wav", "said": "hello"}')
    samples, quarantine = read(tmp_path, "speech.jsonl")
    assert samples == []
    assert "messages:" in quarantine.examples["bad_row"][0]


def test_csv_rows_that_are_broken(tmp_path):
    write(tmp_path, "a.wav", b"x")
    write(tmp_path, "a.csv", b"wav,text\na.wav,hi\na.wav\na.wav,\xff\na.wav,\nno.wav,x\n\na.wav,bye\n")
    samples, quarantine = read(tmp_path, "a.csv")
    assert [s.answer for s in samples] == ["hi", "bye"]
    assert quarantine.counts == {"bad_row": 1, "undecodable": 1, "empty": 1, "missing": 1}


def test_absolute_and_parent_paths_of_a_named_manifest(tmp_path):
    write(tmp_path, "out/a.wav", b"x")
    write(
        tmp_path, "in/a.csv", f"wav,text\n{tmp_path}/out/a.wav,one\n../out/a.wav,two\n../out/b.wav,x\n/\0,x\n"
    )
    samples, quarantine = read(tmp_path, "in/a.csv")
    assert {s.audios[0].path for s in samples} == {str(tmp_path / "out/a.wav")}
    assert quarantine.counts == {"missing": 1, "bad_row": 1}


def test_wrong_sources_stop_with_a_line_that_helps(tmp_path):
    with pytest.raises(DataError, match="found nothing there"):
        read(tmp_path, "no.jsonl")
    write(tmp_path, "a.bin", b"x")
    with pytest.raises(ConfigError, match="format"):
        read(tmp_path, "a.bin")
    write(tmp_path, "a.json", '[{"image": ')
    with pytest.raises(UserError, match=r"a\.json"):
        read(tmp_path, "a.json")


def test_what_never_ends_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="found neither"):
        read(tmp_path, "pipe.jsonl")
    with pytest.raises(DataError, match="found neither"):
        read(tmp_path, Source(path="/dev/zero", format="samples"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
def test_an_empty_file_is_an_error_not_an_empty_training(tmp_path, name):
    write(tmp_path, name, b"")
    with pytest.raises(UserError):
        readers.load([Source(path=name)], base=tmp_path, val_split=0.1, seed=0, quarantine=Quarantine())


@given(
    st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    st.sampled_from(["jsonl", "csv", "txt", "json"]),
)
@settings(max_examples=300)
def test_no_bytes_break_a_reader(tmp_path_factory, content, suffix):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    for source in (
        Source(path=write(folder, f"f.{suffix}", content)),
        Source(path=f"f.{suffix}", text="{x}"),
    ):
        try:
            read(folder, source)
        except UserError:
            continue


def load(folder, sources, quarantine=None, val_split=0.3, seed=0):
    return readers.load(
        sources, base=folder, val_split=val_split, seed=seed, quarantine=quarantine or Quarantine()
    )


def grouped(folder, name, groups, **more):
    write(
        folder,
        name,
        "\n".join(
            json.dumps({"id": f"{g}{i}", "group": g, "text": f"{g} {i}", **more})
            for g in groups
            for i in range(2)
        ),
    )


def test_load_splits_by_group_and_names_what_decides(tmp_path):
    grouped(tmp_path, "a.jsonl", [f"g{i}" for i in range(40)])
    corpus = load(tmp_path, [Source(path="a.jsonl", weight=2.0)])
    assert len(corpus.train) + len(corpus.valid) == 80
    assert corpus.valid
    assert not {s.group for s in corpus.train} & {s.group for s in corpus.valid}
    assert not corpus.leaks
    assert list(corpus.weights) == [2.0] * len(corpus.train)
    grouped(tmp_path, "b.jsonl", ["x", "y"], split="valid")
    assert len(load(tmp_path, [Source(path="b.jsonl")]).valid) == 4
    held = load(tmp_path, [Source(path="a.jsonl", val_split=0.0, held_out_groups=["g1*"])])
    assert {s.group for s in held.valid} == {"g1", *(f"g1{i}" for i in range(10))}


def test_few_groups_still_hold_one_out(tmp_path):
    grouped(tmp_path, "a.jsonl", ["ann", "ben"])
    for seed in range(10):
        corpus = load(tmp_path, [Source(path="a.jsonl")], val_split=0.01, seed=seed)
        assert len({s.group for s in corpus.valid}) == 1
        assert len({s.group for s in corpus.train}) == 1


def test_the_digest_names_content_and_settings_not_the_place(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        grouped(tmp_path / place, "a.jsonl", ["g", "h"])
    here = load(tmp_path / "here", [Source(path="a.jsonl")]).digest
    assert here == load(tmp_path / "there", [Source(path="a.jsonl")]).digest
    assert here != load(tmp_path / "here", [Source(path="a.jsonl")], seed=1).digest
    assert here != load(tmp_path / "here", [Source(path="a.jsonl", limit=3)]).digest
    grouped(tmp_path / "there", "a.jsonl", ["g", "i"])
    assert here != load(tmp_path / "there", [Source(path="a.jsonl")]).digest


def test_ids_of_two_manifests_do_not_clash(tmp_path):
    write(tmp_path, "a.jsonl", '{"id": "0", "text": "one"}')
    write(tmp_path, "b.jsonl", '{"id": "0", "text": "two"}')
    corpus = load(tmp_path, [Source(path="a.jsonl"), Source(path="b.jsonl")], val_split=0.0)
    assert [s.id for s in corpus.train] == ["0", "b:0"]


def test_too_many_bad_rows_stop_with_the_summary(tmp_path):
    write(tmp_path, "a.jsonl", '{"text": "x"}\n' * 98 + "bad\n" * 2)
    with pytest.raises(DataError, match=r"2 of 100: 2 bad_row; first bad_row: .*a\.jsonl:99"):
        load(tmp_path, [Source(path="a.jsonl")])
    assert len(load(tmp_path, [Source(path="a.jsonl")], Quarantine(limit=0.02)).train)


REAL = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "digits.jsonl").exists(), reason="MUOMNI_DATA is absent")
def test_the_real_manifests_are_read_whole():
    digit = [{"user": [{"audio": "{audio}"}, "what digit did you hear?"]}, {"assistant": "{text}"}]
    sources = [
        Source(path="digits.jsonl", group="{speaker}", task="digit", messages=digit),
        Source(
            path="speech.jsonl",
            group="{speaker}",
            messages=[{"user": [{"audio": "{path}"}]}, {"assistant": "{text}"}],
            where={"lang": "en"},
        ),
        Source(
            path="captions.jsonl",
            messages=[{"user": [{"image": "{path}"}]}, {"assistant": "{item}"}],
            expand="captions",
        ),
        Source(
            path="vqa.jsonl",
            messages=[{"user": [{"image": "{image}"}, "{question}"]}, {"assistant": "{answer}"}],
        ),
        Source(path="text/gsm8k.jsonl"),
        Source(path="text/alice.txt", paragraphs=True),
    ]
    quarantine = Quarantine()
    corpus = load(REAL, sources, quarantine, val_split=0.1)
    assert quarantine.total == 0
    assert not corpus.leaks
    tasks = [s.task for s in [*corpus.train, *corpus.valid]]
    assert (
        tasks.count("digit"),
        tasks.count("transcribe"),
        tasks.count("question"),
        tasks.count("caption"),
    ) == (600, 314, 561, 400)


def test_a_quote_that_is_not_closed_swallows_nothing_in_silence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'wav,text\na.wav,"fine, it is"\nb.wav,5" disk\nc.wav,"open\nd.wav,lost\ne.wav,lost too\n'
    )
    rows = list(formats.objects(tmp_path / "t.csv"))
    assert [number for number, _ in rows] == [2, 3, 4, 5, 6]
    assert isinstance(rows[2][1], DataError)
    assert "a quotation mark is not closed" in str(rows[2][1])
    assert [row["text"] for _, row in rows if isinstance(row, dict)] == [
        "fine, it is",
        '5" disk',
        "lost",
        "lost too",
    ]


def test_a_key_given_twice_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'id' is given twice"):
        formats.decode_json('{"id": "a", "id": "b", "text": "x"}')
