"""The split is a function of the group's name: nothing moves, nothing straddles."""

from hypothesis import given
from hypothesis import strategies as st

from muomni.data import split
from muomni.data.sample import parse


@given(st.sets(st.text(max_size=9), min_size=1, max_size=30), st.integers(0, 99))
def test_growth_moves_no_group(groups, seed):
    before = {g: split.assign(g, 0.3, seed) for g in sorted(groups)}
    after = {g: split.assign(g, 0.3, seed) for g in sorted(groups | {"new", "newer"})}
    assert before.items() <= after.items()
    assert all(
        split.assign(g, 0.5, seed) == "valid" for g, side in before.items() if side == "valid"
    )  # a larger share only adds


def test_the_share_is_kept_and_the_seed_matters():
    valid = [{g for g in range(4000) if split.assign(str(g), 0.1, seed) == "valid"} for seed in (0, 1)]
    assert all(320 < len(side) < 480 for side in valid)
    assert len(valid[0] & valid[1]) < 100
    assert {split.assign(str(g), 0.0, 0) for g in range(100)} == {"train"}


def test_the_assignment_is_pinned():
    assert [g for g in "abcdefghij" if split.assign(g, 0.3, 0) == "valid"] == ["d", "f"]


def image(name, group, path):
    turns = [
        {"role": "user", "content": [{"type": "image", "path": path}]},
        {"role": "assistant", "content": "x"},
    ]
    return parse({"id": name, "group": group, "messages": turns})


def test_every_kind_of_leak_is_seen():
    train = [image("1", "ann", "a.png"), image("2", "ben", "b.png")]
    assert not split.leaks(train, [image("3", "cat", "c.png")])
    assert split.leaks(train, [image("1", "cat", "c.png")]).ids == ["1"]
    assert split.leaks(train, [image("3", "ben", "c.png")]).groups == ["ben"]
    found = split.leaks(train, [image("3", "cat", "b.png")])
    assert found.paths == ["b.png"]
    assert "1 media" in str(found)
    same = {"a.png": "h1", "b.png": "h2", "copy.png": "h1"}
    copied = split.leaks(train, [image("3", "cat", "copy.png")], lambda s: [same[p.path] for p in s.media])
    assert copied.contents == ["h1"]
    assert copied
