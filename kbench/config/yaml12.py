"""YAML 1.2 text to plain values and back.

`3e-4` is a number, `no` and `on` are text, `0012` and `1_000` are text, and a key may stand once. What comes out
is what JSON can hold too: mappings with text as keys, lists, text, numbers, true, false and null. To read one more
kind of scalar, add a row to `_SCALARS`.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from kbench.errors import ConfigError

MAX_DEPTH = 40
MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    """PyYAML with YAML 1.2 scalars, no duplicate keys, and nothing that JSON cannot hold."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (declared so by PyYAML)
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        _TAG + "null": yaml.SafeLoader.construct_yaml_null,
        _TAG + "bool": yaml.SafeLoader.construct_yaml_bool,
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        None: yaml.SafeLoader.construct_undefined,
    }


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the 1.2 resolver would take for something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(letter in text for letter in "\x85\u2028\u2029\ufeff") else None  # line breaks to PyYAML
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _text)
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


def _refused(node: yaml.Node, why: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _refused(node, "a mapping was expected")
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refused(key_node, f"the key {key!r} is not text; write it in quotes")
        if key in mapping:
            raise _refused(key_node, f"the key '{key}' stands twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _list(loader: _Loader, node: Any) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _int(loader: _Loader, node: Any) -> int:
    return int(str(loader.construct_scalar(node)))


def _float(loader: _Loader, node: Any) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, _construct in (("map", _mapping), ("seq", _list), ("int", _int), ("float", _float)):
    _Loader.add_constructor(_TAG + _name, _construct)


def parse_yaml(text: str, *, name: str) -> Any:
    """Parse one YAML document.

    Args:
        text: the document.
        name: how messages call it.

    Raises:
        ConfigError: it is not YAML, a key stands twice, or it holds what JSON cannot; the message has line and column.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
        _check(content)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        reason = " ".join(_reason(error).split())
        raise ConfigError(
            f"'{name}' is not valid YAML: {reason[:500]}", "a YAML file", "correct that line; indent with spaces"
        ) from error
    return content


def _reason(error: Exception) -> str:
    """Return why a text is no YAML, its line and column first."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return str(error)
    why = ", ".join(part for part in (error.context, error.problem) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {why}"


def _check(content: Any) -> None:
    """Refuse what would break later: endless nesting and text that no file can hold."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:  # aliases of aliases can make billions of values
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_VALUES:,} values")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
            raise ValueError(f"the text {value!r:.80} holds a character that cannot be written")


def dump_yaml(content: Any) -> str:
    """Return YAML text, keys in the order given, that `parse_yaml` reads back unchanged."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
