"""Recipes and stage settings: YAML in, strict pydantic out, every fault one line that names file, key, value
and the nearest valid key."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from muomni import renamed as renames
from muomni.errors import ConfigError, did_you_mean


class Strict(BaseModel):
    """A settings model that refuses unknown keys and can't be changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Fields whose keys are themselves settings of this class, as a sweep's `grid`.
    names_settings: ClassVar[frozenset[str]] = frozenset()


class ReportsIdle(Strict):
    """Settings that refuse an option which, as the others stand, has no effect: it would be taken, and do
    nothing."""

    def idle(self) -> dict[str, str]:
        """Options without effect as the others stand, a nested one as `model.width`, and why."""
        return {}

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        for name, reason in self.idle().items():
            if is_set(self, name):
                raise ValueError(f"{name} has no effect: {reason}")
        return self


def is_set(settings: BaseModel, name: str) -> bool:
    """Whether an option (a nested one as `model.width`) is another than its default."""
    *parents, last = name.split(".")
    for part in parents:
        settings = getattr(settings, part)
    default = type(settings).model_fields[last]
    return not default.is_required() and bool(
        getattr(settings, last) != default.get_default(call_default_factory=True)
    )


# SPEC C1: names that the original's configs and docs use for the same thing.
SYNONYMS = {
    "learning_rate": "lr",
    "weight_decay": "wd",
    "num_epochs": "max_epochs",
    "epochs": "max_epochs",
    "save_every": "checkpoint_freq",
    "eval_every": "val_freq",
    "data_path": "data",
    "warmup": "warmup_steps",
    "grad_accum": "gradient_accumulation_steps",
}

_Model = TypeVar("_Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load(text: str, fault: str) -> Any:
    """The value of a YAML text; `fault` begins the message of the ConfigError that anything else becomes."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{fault}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        # PyYAML lets through what fails inside of a value: !!int x, a 13th month, a thousand open brackets
        raise ConfigError(
            f"{fault}: a value can't be read: {type(error).__name__} {' '.join(str(error).split())[:200]}"
        ) from error


# In JSON: a string, whole, or a comment. What stands in a string is no comment.
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)


def uncommented(text: str, where: str) -> str:
    """A JSON text with `//` and `/* */` comments blanked out: every line and column stays where it was.

    Raises  ConfigError for a comment that is never closed.
    """

    def blank(match: re.Match[str]) -> str:
        matched = match[0]
        if matched == "/*":
            line = text.count("\n", 0, match.start()) + 1
            raise ConfigError(
                f"{where}: line {line}: the comment that begins with /* is never closed",
                hint="close it with */",
            )
        return matched if matched.startswith('"') else re.sub(r"[^\n]", " ", matched)

    return _COMMENT.sub(blank, text)


def _load_json(text: str, where: str) -> Any:
    """The value of a JSON text; what JSON refuses may still be YAML's flow style (a comma too many, keys
    without quotes)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ConfigError(f"{where}: key {twice!r} stands twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return _load(text.replace("\t", " "), f"{where}: not valid JSON")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in a JSON file that may have comments; `${NAME}` and `${NAME:-default}`
    come from the environment.

    Raises  ConfigError for a missing file, bad YAML, a comment that is never closed, or a value that is no
            mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: can't read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    return parse_yaml(text, str(path), is_json=path.suffix.lower() == ".json")


def parse_yaml(text: str, where: str, *, is_json: bool = False) -> dict[str, Any]:
    """As `read_yaml`, from a text; `where` names it in errors."""

    def substitute(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        value = os.environ.get(name, default)
        if value is None:
            raise ConfigError(
                f"{where}: ${{{name}}} is not set", hint=f"export {name}=... or write ${{{name}:-default}}"
            )
        return value

    text = uncommented(text, where) if is_json else text
    text = re.sub(r"\$\{(?P<name>[A-Z_][A-Z0-9_]*)(?::-(?P<default>[^}]*))?\}", substitute, text)
    value = _load_json(text, where) if is_json else _load(text, f"{where}: not valid YAML")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of keys, got {type(value).__name__}")
    return value


def renamed(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Values with the original's synonyms replaced by our names (only where the model has the target)."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = SYNONYMS.get(key, key) if key not in model.model_fields else key
        name = name if name in model.model_fields else key
        if name in out or (name != key and name in values):
            raise ConfigError(f"{key}: given twice (it means the same as {name})")
        out[name] = value
    return out


_SAID: set[tuple[str, str]] = set()  # renamed keys that this process has named


def say_renamed(old: str, new: str, where: str) -> None:
    """Name the new name of an old key, on standard error and once a process."""
    if (old, new) not in _SAID:
        _SAID.add((old, new))
        print(f"{where}: {old} is now {new} (docs/renamed.md)", file=sys.stderr, flush=True)


def current(values: Any, model: type[BaseModel], where: str | None = None) -> Any:
    """Values of a settings model and of all models inside of it, old keys replaced by new ones
    (`muomni.renamed`).

    Takes   values: as read from a file, not checked; what is no mapping stays as it is.
            where: the file, to say each new name on standard error; None: say nothing, as for stored files.
    Raises  ConfigError where a key stands under its old and its new name.
    """

    return _reworded(values, [model], lambda key, of: _new_name(key, of, where))


def _new_name(key: str, of: type[BaseModel], where: str | None) -> str:
    """The key by its name of today, as a path where it has moved into a block: resampler_width is
    connector.width."""
    new = key if key in of.model_fields else renames.keys_of(of).get(key, key)
    if new != key and where is not None:
        say_renamed(key, new, where)
    return new


def first_names(values: Any, model: type[BaseModel]) -> Any:
    """Values of a settings model with every key under the first name that it had, and where it stood, for
    digests."""

    def old_name(path: str, of: type[BaseModel]) -> str:
        return next((old for old, new in renames.keys_of(of).items() if new == path), path)

    return _reworded(values, [model], old_name)


def as_stored(values: Mapping[str, Any], stored: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Values of a settings model without the keys that stored ones lack and that stand at their defaults.

    This is what the version that wrote `stored` would write now: options that came later change no digest
    while nobody uses them.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if (
            field is not None
            and key not in stored
            and value == to_jsonable_python(field.get_default(call_default_factory=True))
        ):
            continue
        before, inside = stored.get(key), [] if field is None else _models_in(field.annotation)
        pairs: Any = [(value, before)] if isinstance(value, Mapping) else []
        if isinstance(value, list) and isinstance(before, list) and len(value) == len(before):
            pairs = zip(value, before)
        if (
            inside
            and (both := list(pairs))
            and all(isinstance(part, Mapping) for pair in both for part in pair)
        ):
            pruned = [as_stored(now, then, inside[0]) for now, then in both]
            value = pruned if isinstance(value, list) else pruned[0]
        kept[key] = value
    return kept


def _reworded(value: Any, models: list[type[BaseModel]], name: Callable[[str, type[BaseModel]], str]) -> Any:
    """A value that one of these models checks, with each key renamed; so are the values inside of it."""
    if isinstance(value, list | tuple):
        return [_reworded(part, models, name) for part in value]
    if not models or not isinstance(value, dict):
        return value
    model = models[0]
    moved = renames.keys_of(model)
    blocks = {new.partition(".")[0] for new in moved.values() if "." in new}
    out: dict[Any, Any] = {}
    for key, part in value.items():
        # A block into which keys have moved is gone through key by key: each may have its own place.
        paths = (
            {f"{key}.{inner}": each for inner, each in part.items()}
            if key in blocks and isinstance(part, dict)
            else {key: part}
        )
        for path, each in paths.items():
            new = name(path, model) if isinstance(path, str) else path
            if new == path != key:
                new = f"{key}.{name(path.removeprefix(f'{key}.'), _models_at(model, key)[0])}"
            if has(out, new) or (new != path and has(value, new)):
                raise ConfigError(f"{path}: given twice (it means the same as {new})")
            lists_settings = isinstance(each, dict) and key in getattr(model, "names_settings", ())
            put(
                out,
                new,
                _reworded(
                    each, [model] if lists_settings else _models_at(model, moved.get(path, path)), name
                ),
            )
    return out


def _models_at(model: type[BaseModel], path: Any) -> list[type[BaseModel]]:
    """The models that check the value at a path of a settings model; none for a key that it does not have."""
    models = [model]
    for part in str(path).split("."):
        field = models[0].model_fields.get(part) if models else None
        models = [] if field is None else _models_in(field.annotation)
    return models


def has(values: Any, path: Any) -> bool:
    """Whether nested settings have a value at a path."""
    for part in str(path).split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def put(values: dict[Any, Any], path: Any, value: Any) -> None:
    """Put a value at a path of nested settings.

    Raises  ConfigError where the path goes through a value.
    """
    *parents, last = path.split(".") if isinstance(path, str) else [path]
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {part} is {values!r:.60}, it has no keys")
    values[last] = value


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path; what is no mapping stays whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def current_path(path: str, model: type[BaseModel], where: str) -> str:
    """The path of an override (`model.experts.number`, `data.0.told`), old keys replaced by new ones."""
    parts: list[str] = []
    models = [model]
    for part in path.split("."):
        if models and not part.isdecimal():
            of = models[0]
            part = _new_name(part, of, where)
            models = models if part in getattr(of, "names_settings", ()) else _models_at(of, part)
        parts.append(part)
    return ".".join(parts)


def build(model: type[_Model], values: Mapping[str, Any], where: str, *, is_stored: bool = False) -> _Model:
    """Check values against a settings model; a fault becomes one line with the key, the value and the nearest
    valid key.

    Old names of keys are accepted; the new ones are said on standard error, unless muomni itself stored the
    values (`is_stored`).

    Raises  ConfigError
    """
    try:
        return model.model_validate(renamed(current(values, model, None if is_stored else where), model))
    except ValidationError as error:
        raise ConfigError(_explain(error, model, where)) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    for fault in error.errors()[:5]:
        key = ".".join(str(part) for part in fault["loc"])
        got = repr(fault.get("input"))
        got_text = f", got {got if len(got) < 80 else got[:77] + '...'}"
        line = (
            f"{where}: {key}: {fault['msg'].lower()}{got_text}"
            if key
            else f"{where}: {fault['msg'].removeprefix('Value error, ')}"
        )
        if fault["type"] == "extra_forbidden":
            fields = _fields_at(model, fault["loc"][:-1])
            line += "; " + did_you_mean(
                fault["loc"][-1], fields, f"valid keys: {', '.join(fields)}", cutoff=0.5
            )
        lines.append(line)
    return "; ".join(lines)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that sits at a location of an error."""
    current: Any = model
    for part in location:
        if isinstance(part, int) or not (isinstance(current, type) and issubclass(current, BaseModel)):
            continue
        field = current.model_fields.get(part)
        if field is None:
            continue
        models = _models_in(field.annotation)
        current = models[0] if models else current
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Values with `a.b.c=yaml` assignments of the command line applied; lists are indexed by number.

    Raises  ConfigError for an assignment without `=` or a path through a value that is no mapping.
    """
    import copy

    out = copy.deepcopy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"{assignment!r}: expected KEY=VALUE, e.g. thinker.max_steps=200")
        value = _load(text, f"{assignment!r}: the value is not valid YAML")
        *parents, last = path.split(".")
        node: Any = out
        for part in parents:
            node = _child(node, part, assignment)
        if isinstance(node, list):
            node[_position(node, last, assignment)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"{assignment!r}: {'.'.join(parents)} is a value, it has no keys")
    return out


def _child(node: Any, part: str, assignment: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, assignment)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise ConfigError(f"{assignment!r}: {part} lies in a value that has no keys")


def _position(node: list[Any], part: str, assignment: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f"{assignment!r}: {part} is no position of a list of {len(node)}")
    return int(part)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Readable lines `key: old -> new` for every leaf that differs between two nested settings."""
    return [f"{key}: {a!r} -> {b!r}" for key, a, b in changes(old, new)]


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Every leaf that differs between two nested mappings: its key, its old and its new value."""
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from changes(a, b, f"{above}{key}.")
        elif a != b:
            yield f"{above}{key}", a, b
