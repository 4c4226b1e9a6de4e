"""Recipes: every fault is one line that names the place and the way out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from muomni import config
from muomni.data.order import Order
from muomni.errors import ConfigError
from muomni.train.settings import TrainSettings, clipped, sized


class Inner(config.Strict):
    depth: int = Field(2, ge=1)


class Model(config.Strict):
    """lr has the synonym learning_rate."""

    lr: float = Field(1e-3, gt=0)
    name: str = "x"
    inner: Inner = Inner()
    many: list[Inner] = []
    maybe: Inner | None = None


def fault(read: Callable[[], Any]) -> str | None:
    """What the ConfigError says, or None where a mapping came back; anything else is a failure."""
    try:
        value = read()
    except ConfigError as error:
        return str(error)
    assert isinstance(value, dict)
    return None


def build(**values: Any) -> Model:
    return config.build(Model, values, "recipe.yaml: thinker")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lrr": 1.0}, ["lrr", "did you mean lr?"]),
        ({"inner": {"dept": 3}}, ["inner.dept", "did you mean depth?"]),
        ({"many": [{"depth": 1}, {"deepth": 3}]}, ["many.1.deepth", "did you mean depth?"]),
        ({"maybe": {"dpth": 3}}, ["maybe.dpth", "did you mean depth?"]),
        ({"zzzzzz": 1}, ["zzzzzz", "valid keys: lr, name, inner, many, maybe"]),
        ({"lr": "fast"}, ["lr", "'fast'", "number"]),
        ({"lr": -1.0}, ["lr", "-1.0", "greater than 0"]),
        ({"inner": {"depth": 0}}, ["inner.depth", "0", "greater than or equal to 1"]),
        ({"inner": 3}, ["inner", "3"]),
        ({"name": ["a"]}, ["name", "['a']", "string"]),
    ],
)
def test_faults_name_place_key_value_and_the_nearest_key(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**values)
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in ["recipe.yaml: thinker", *words]), said
    assert caught.value.exit_code == 2


def test_the_original_names_are_understood() -> None:
    values = {
        "learning_rate": 0.01,
        "weight_decay": 0.2,
        "num_epochs": 3,
        "save_every": 7,
        "eval_every": 9,
        "data_path": [{"path": "a"}],
        "warmup": 4,
        "grad_accum": 2,
    }
    read = config.build(TrainSettings, values, "x")
    assert (read.lr, read.wd, read.max_epochs, read.checkpoint_freq, read.val_freq) == (0.01, 0.2, 3, 7, 9)
    assert (read.data[0].path, read.warmup_steps, read.gradient_accumulation_steps) == ("a", 4, 2)
    assert config.build(TrainSettings, {"epochs": 5}, "x").max_epochs == 5
    names = "max_steps warmup_steps val_freq checkpoint_freq max_grad_norm gradient_accumulation_steps use_amp val_split seed lr wd batch_size"
    assert set(f"{names} print_freq".split()) <= set(TrainSettings.model_fields)


@pytest.mark.parametrize("values", [{"lr": 1.0, "learning_rate": 1.0}, {"learning_rate": 1.0, "lr": 2.0}])
def test_a_name_and_its_synonym_together_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        build(**values)
    with pytest.raises(ConfigError, match="given twice"):
        config.build(TrainSettings, {"epochs": 1, "num_epochs": 1}, "x")


@pytest.mark.parametrize(
    "values",
    [
        {"decay_share": 0.3},
        {"min_delta": 0.1},
        {"use_amp": False, "precision": "bf16"},
        {"epoch_duration": "1h"},
        {"samples_per_epoch": 100, "max_steps": 10},
    ],
)
def test_options_without_effect_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config.build(TrainSettings, values, "x")


def test_those_options_with_effect_are_taken() -> None:
    config.build(TrainSettings, {"decay_share": 0.3, "schedule": "wsd"}, "x")
    config.build(TrainSettings, {"min_delta": 0.1, "patience": 2}, "x")
    config.build(TrainSettings, {"use_amp": False}, "x")


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "+3e-4", "0.0003"])
def test_numbers_with_an_exponent_are_numbers(text: str) -> None:
    assert config.parse_yaml(f"lr: {text}", "x") == {"lr": 3e-4}


def test_words_that_look_like_numbers_stay_words() -> None:
    assert config.parse_yaml("a: 3e\nb: e4\nc: '3e-4'\nd: 1e4x", "x") == {
        "a": "3e",
        "b": "e4",
        "c": "3e-4",
        "d": "1e4x",
    }


@pytest.mark.parametrize(
    "text", ["lr: 1\nlr: 2", "a: {b: 1, b: 2}", '{"a": 1, "a": 1}', "a:\n  - {x: 1, x: 2}"]
)
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="stands twice"):
        config.parse_yaml(text, "r.yaml")


def test_merge_keys_and_json_are_yaml() -> None:
    assert config.parse_yaml("base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}", "x")["mine"] == {"x": 1, "y": 3}
    assert config.parse_yaml('{"lr": 1e-4, "data": [null, true]}', "x") == {"lr": 1e-4, "data": [None, True]}


def test_the_environment_is_substituted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_TEST_ROOT", "/data")
    monkeypatch.delenv("MUOMNI_TEST_NONE", raising=False)
    text = "a: ${MUOMNI_TEST_ROOT}/x\nb: ${MUOMNI_TEST_NONE:-7}\nc: '${MUOMNI_TEST_NONE:-}'\nd: '{world}/y'"
    assert config.parse_yaml(text, "r") == {"a": "/data/x", "b": 7, "c": "", "d": "{world}/y"}
    with pytest.raises(ConfigError, match=r"MUOMNI_TEST_NONE.*not set"):
        config.parse_yaml("a: ${MUOMNI_TEST_NONE}", "r")


@settings(max_examples=300)
@given(st.text(max_size=200) | st.text(alphabet="{}[]:,&*!-? \n'\"#|>%@`ab0129.eE_", max_size=60))
@example("a: !!map b")
@example("!!map [1]")
@example("a: !!set [1, 2]")
@example("a: !!int x")
@example("a: !!bool maybe")
@example("a: !!float x")
@example("a: !!timestamp x")
@example("a: 2020-99-99")
@example("a: 0b_")
@example("a: 0x_")
@example("[a]: 1")
@example("{a: 1}: 1")
@example("&a [*a]: 1")
@example("a: &x [*x]")
@example("<<: 1")
@example("<<: [1]")
@example("a: " + "[" * 3000)
@example("{" * 3000)
@example("a: " + "9" * 5000)
@example("a: " + ":".join(["1"] * 400) + ".0")
@example("a: !!python/object:os.system x")
@example("\x00")
@example("a: \ud800")
@example("%YAML 9.9\n---\na: 1")
@example("a: 1\n---\nb: 2")
def test_any_text_is_a_mapping_or_a_config_error(text: str) -> None:
    told = fault(lambda: config.parse_yaml(text, "any.yaml"))
    assert told is None or ("any.yaml" in told and "\n" not in told)


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_any_file_is_a_mapping_or_a_config_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(content)
        told = fault(lambda: config.read_yaml(path))
        assert told is None or str(path) in told


def test_a_missing_file_and_a_folder_are_config_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="can't read"):
            config.read_yaml(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["lr", "inner", "depth", "many", "x", "1"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["lr", "learning_rate", "name", "inner", "many", "maybe", "zz"]), JSON, max_size=4
    )
)
def test_any_values_build_or_are_explained(values: dict[str, Any]) -> None:
    told = fault(lambda: dict(build(**values)))
    assert told is None or "\n" not in told


def test_overrides_reach_any_depth() -> None:
    values = {"thinker": {"lr": 1.0, "data": [{"path": "a"}, {"path": "b", "tags": ["x", "y"]}]}, "seed": 1}
    before = repr(values)
    out = config.override(
        values,
        [
            "thinker.lr=3e-4",
            "thinker.data.1.path=c",
            "thinker.data.1.tags.0=z",
            "thinker.model.width=64",
            "seed=7",
            "omni.train=[a.*, '!b']",
            "thinker.note=a=b",
            "thinker.none=",
            "thinker.data.0={path: q, weight: 2}",
        ],
    )
    assert out["thinker"]["lr"] == 3e-4
    assert out["thinker"]["data"] == [{"path": "q", "weight": 2}, {"path": "c", "tags": ["z", "y"]}]
    assert out["thinker"]["model"] == {"width": 64}
    assert out["thinker"]["note"] == "a=b"
    assert out["thinker"]["none"] is None
    assert out["omni"] == {"train": ["a.*", "!b"]}
    assert out["seed"] == 7
    assert repr(values) == before, "the recipe itself is not changed"


@pytest.mark.parametrize(
    "assignment",
    [
        "seed",
        "=3",
        "a.2=1",
        "a.x=1",
        "a.-1=1",
        "b.c=1",
        "b.c.d=1",
        "a.0.x=1",
        "x=[1",
        "x=!!int y",
        "x={a: 1, a: 2}",
        "a.²=1",
    ],
)
def test_overrides_that_lead_nowhere_are_refused(assignment: str) -> None:
    with pytest.raises(ConfigError):
        config.override({"a": [1, 2], "b": 3}, [assignment])


def test_differences_are_told_leaf_by_leaf() -> None:
    old = {"lr": 1, "model": {"width": 2, "same": 0}, "gone": 1}
    new = {"lr": 2, "model": {"width": 4, "same": 0}, "came": [1]}
    assert config.difference(old, new) == [
        "came: None -> [1]",
        "gone: 1 -> None",
        "lr: 1 -> 2",
        "model.width: 2 -> 4",
    ]
    assert config.difference(old, old) == []


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        build().lr = 2.0  # type: ignore[misc]


# --- JSON with comments -------------------------------------------------------------------------------------------------------------------


def test_comments_in_json_are_no_part_of_it_and_strings_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '{\n\t"lr": 3e-4, // the rate\n  /* two\n lines */ "name": "http://x /* no comment */ \\" // none",\n  "n": [1, 2],\n}\n'
    )
    assert config.read_yaml(path) == {"lr": 3e-4, "name": 'http://x /* no comment */ " // none', "n": [1, 2]}
    path.write_text("\ufeff" + '{"emoji": "\\ud83d\\ude00"}')
    assert config.read_yaml(path) == {"emoji": "\U0001f600"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n /* open\n "b": 2}', ["line 2", "/*", "never closed"]),
        ('{"a": 1, "a": 2}', ["'a'", "stands twice"]),
        ('{"a": 1\n "b": 2}', ["not valid JSON", "line 2"]),
        ("[1]", ["expected a mapping"]),
        ("", ["expected a mapping"]),
    ],
)
def test_faults_of_json_are_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    said = fault(lambda: config.read_yaml(path))
    assert said is not None
    assert "\n" not in said
    assert all(word in said for word in ["a.json", *words]), said


# --- how long a run is --------------------------------------------------------------------------------------------------------------------


def test_epochs_alone_end_a_run_where_they_end_and_steps_have_a_default_only_without_them() -> None:
    order = Order([406 * 8], batch_size=8, seed=1)
    assert sized(config.build(TrainSettings, {}, "x"), order, 1).max_steps == 1000
    assert sized(config.build(TrainSettings, {"num_epochs": 50}, "x"), order, 1).max_steps == 50 * 406
    assert (
        sized(config.build(TrainSettings, {"num_epochs": 50, "max_steps": 70}, "x"), order, 1).max_steps == 70
    )
    assert (
        sized(config.build(TrainSettings, {"num_epochs": 1, "max_steps": None}, "x"), order, 4).max_steps
        == 102
    )  # 406 / 4, the rest too
    stored = config.build(TrainSettings, {"num_epochs": 2}, "x").model_dump()
    assert config.build(TrainSettings, stored, "x").model_dump() == stored, (
        "what a run stores of it reads as the same"
    )


def test_a_warm_up_longer_than_the_run_is_cut_to_a_tenth_and_told() -> None:
    order = Order([400], batch_size=8, seed=1)
    asked = config.build(TrainSettings, {"warmup_steps": 1000, "num_epochs": 4}, "x")
    run = sized(asked, order, 1)
    assert (run.max_steps, run.warmup_steps) == (200, 20)
    assert clipped(asked, run) == ["warmup_steps 1000 is no shorter than the run of 200 steps: 20 are taken"]
    for fits in ({"warmup_steps": 199, "num_epochs": 4}, {"warmup_steps": 0, "max_steps": 1}):
        kept = config.build(TrainSettings, fits, "x")
        assert sized(kept, order, 1).warmup_steps == fits["warmup_steps"]
        assert not clipped(kept, sized(kept, order, 1))
    assert (
        sized(config.build(TrainSettings, {"warmup_steps": 10, "max_steps": 10}, "x"), order, 1).warmup_steps
        == 1
    )


def test_an_epoch_of_so_many_samples_is_counted_in_batches_whatever_the_data_hold() -> None:
    few, many = Order([40], batch_size=8, seed=1), Order([4000], batch_size=8, seed=1)
    settings = config.build(TrainSettings, {"samples_per_epoch": 100, "num_epochs": 3, "batch_size": 8}, "x")
    for order in (few, many):
        assert settings.batches_per_epoch(order) == 13  # 100 / 8, the rest too
        assert sized(settings, order, 2).max_steps == 20  # 39 / 2
    with pytest.raises(ConfigError, match="epoch_duration: expected a duration"):
        config.build(TrainSettings, {"epoch_duration": "an hour", "num_epochs": 1}, "x")
