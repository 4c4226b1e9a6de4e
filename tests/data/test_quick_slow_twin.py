"""Lines that the schema's own parser takes at once, against the way that every other row goes: the same
samples, errors and account."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import formats, readers
from muomni.data import sample as samples
from muomni.data.quarantine import Quarantine
from muomni.data.reading import Account
from muomni.data.sample import Quick
from muomni.data.source import Source

words = st.sampled_from(
    [
        "a cat",
        "",
        " ",
        "ä\n",
        'say "x": y',
        "\\",
        "<image> what?",
        "[IMG]",
        "a < b",
        "\x00",
        "\ud83d\ude00",
        "\ud800",
        "1",
    ]
)
second = st.sampled_from([0, 1, 1.5, -1, 2.0, 1e999, None, "1", 10**400, True])
picture = st.fixed_dictionaries(
    {"type": st.just("image"), "path": st.sampled_from(["a.png", "b.png", "", "none.png"])}
)
sound = st.fixed_dictionaries(
    {"type": st.just("audio"), "path": st.just("a.wav")},
    optional={
        "start": second,
        "end": second,
        "channel": st.sampled_from([0, 1, None, -1, 1.0]),
        "speaker": st.sampled_from(["x", None, 3]),
    },
)
said = st.fixed_dictionaries({"type": st.just("text"), "text": words})
others = st.sampled_from(
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text"},
        {"type": "video", "path": "a"},
        "bare",
        3,
        {"text": "untyped"},
    ]
)
content = (
    words | st.lists(picture | sound | said, max_size=3) | st.lists(others | picture, max_size=2) | st.none()
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "human"]), "content": content},
    optional={"weight": st.just(1)},
)
row = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["7", "x", "", None, 7]),
        "group": st.sampled_from(["g", "", None, 3]),
        "task": st.sampled_from(["question", "transcribe", "", None]),
        "messages": st.lists(message, max_size=3) | st.none(),
        "text": words | st.none(),
        "split": st.sampled_from(["train", "valid", "dev", "x", None]),
        "negatives": st.sampled_from([[], [{"kind": "colour", "text": "red"}], [{"kind": "colour"}], None]),
        "extra": st.sampled_from([{}, {"names": "x"}, {"a": "a.png"}, None, 3]),
        "images": st.sampled_from([["a.png"], []]),
        "licence": st.just("CC0"),
        "massages": st.just([]),
    },
)
plain = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["7", "8"]),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["user", "assistant"]),
                    "content": words | st.lists(picture | sound | said, max_size=3),
                }
            ),
            max_size=3,
        ),
    },
    optional={"group": st.just("g"), "task": st.just("question")},
)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",", "\t:\r ")])


@st.composite
def lines(draw):
    text = json.dumps(draw(row | plain), ensure_ascii=draw(st.booleans()), separators=draw(separators))
    change = draw(st.sampled_from(["none", "none", "double", "cut", "swap", "insert"]))
    place = draw(st.integers(0, len(text)))
    if change == "double":  # a key twice, at the beginning or in any object
        at = draw(st.sampled_from([i for i, letter in enumerate(text) if letter == "{"] or [0]))
        key = draw(
            st.sampled_from(
                ['"id": "9", ', '"text" : "b", ', '"path":"b.png",', '"type": "text",', '"role": "user", ']
            )
        )
        return text[: at + 1] + key + text[at + 1 :]
    if change == "cut":
        return text[:place]
    letter = draw(st.sampled_from(list('"\\:,{}[]<\x01 a\u00a0')))
    return (
        text[:place] + letter + text[place + (change == "swap") :] if change in ("swap", "insert") else text
    )


def read(path: Path) -> tuple[object, ...]:
    quarantine, account = Quarantine(), Account()
    found = list(readers.numbered(Source(path=path.name, format="samples"), path.parent, quarantine, account))
    return (
        found,
        quarantine.counts,
        quarantine.examples,
        account.read,
        account.left,
        account.sides,
        account.unnamed,
        account.named,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    for name in ("a.png", "b.png", "a.wav"):
        (folder / name).write_bytes(b"x")
    return folder


@settings(max_examples=600, deadline=None)
@given(rows=st.lists(lines(), min_size=1, max_size=6))
def test_quick_lines_are_read_as_all_others(folder, rows):
    path = folder / "rows.jsonl"
    path.write_bytes("\n".join(each.replace("\n", " ") for each in rows).encode("utf-8", "surrogatepass"))
    quick = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "Quick", lambda: None)
        assert read(path) == quick


def test_what_is_quick():
    quick = Quick()
    turns = '"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}, {"role": "assistant", "content": "a cat"}]'
    found = quick(f'{{"id": "7", {turns}}}')
    assert found is not None
    assert (found.group, found.task, found.answer) == ("a.png", "caption", "a cat")
    assert quick('{"id": "7", "text": "said \\": twice"}') is None, (
        "it may be the end of a key: the slow way looks"
    )
    assert quick(f'{{"id": "7", "id": "8", {turns}}}') is None, "a parser would keep the last"
    assert quick(f"{{{turns}}}") is None, "an id is made of the row as it stands"


def test_too_many_lines_in_vain_and_it_stops():
    quick, good = Quick(), '{"id": "7", "text": "a"}'
    for _ in range(samples.ENOUGH_LUCK - 1):
        assert quick("{}") is None
    assert quick(good) is not None
    for _ in range(2):
        quick("{}")
    assert quick(good) is None
