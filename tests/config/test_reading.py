from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yamls import DIGITS, digits

from kbench import files
from kbench.config.competition import Competition
from kbench.config.reading import (
    load_competition,
    merge,
    override,
    read_document,
    read_yaml,
    validate,
    with_stage_defaults,
)
from kbench.config.yaml12 import dump_yaml, parse_yaml
from kbench.errors import ConfigError
from kbench.workspace import Workspace

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["a", "b", "name", "n"])
MAPPINGS = st.recursive(
    st.dictionaries(KEYS, st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["x", "y"]), max_size=3),
    lambda inner: st.dictionaries(
        KEYS, inner | st.none() | st.integers(0, 3) | st.sampled_from(["x", "y"]), max_size=3
    ),
    max_leaves=6,
)


def check(content: dict[str, Any], folder: Path = Path("nowhere")) -> Competition:
    """Validate a mapping."""
    return validate(content, file="mine.yaml", folder=folder, name="mine")


def problems(change: dict[str, Any], folder: Path = Path("nowhere")) -> list[str]:
    """Return the problems of the digits YAML with a change merged over it; none when it is valid."""
    try:
        check(merge(digits(), change), folder)
    except ConfigError as error:
        return [line.removeprefix("  - ") for line in error.what.splitlines()[1:]]
    return []


def places(change: dict[str, Any]) -> list[str]:
    """Return where the problems are."""
    return [text.partition(": ")[0] for text in problems(change)]


@pytest.fixture
def write(workspace: Workspace) -> Callable[..., Workspace]:
    """Write the digits YAML and experiments of it, given as texts by name."""

    def run(**experiments: str) -> Workspace:
        files.write_text(workspace.competition("digits"), DIGITS)
        for name, text in experiments.items():
            files.write_text(workspace.experiment("digits", name), text)
        return workspace

    return run


# -- scalars ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e3", 1000.0), ("1E+3", 1000.0), (".5", 0.5), ("+.5", 0.5), ("1.", 1.0), ("-1.5e-7", -1.5e-7),
        ("0", 0), ("-0", 0), ("+7", 7), ("12345678901234567890", 12345678901234567890), ("1e400", float("inf")),
        (".inf", float("inf")), ("-.INF", float("-inf")), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None),
    ],
)  # fmt: skip
def test_numbers_truth_and_nothing_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", name="x")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["no", "on", "yes", "off", "y", "N", "0012", "1_000", "0x1F", "0o17", "0b1", "12:30:00", "2024-01-01", "tRue",
     "nULL", "1e", "e5", ".", "-", "+", "1.2.3", "inf", "nan", "=", "<<"],
)  # fmt: skip
def test_everything_else_is_text(text: str) -> None:
    assert parse_yaml(f"[{text}]" if text != "-" else '["-"]', name="x") == [text.strip()]


def test_not_a_number_is_read() -> None:
    assert str(parse_yaml(".NaN", name="x")) == "nan"


@given(content=VALUES)
@example(content={"3e-4": ["no", "0012", "1_000", "null", "~", "", " ", "a: b", "- x", "#", "é", "\u2028", "\x85"]})
def test_what_is_dumped_is_read_back_unchanged(content: Any) -> None:
    assert parse_yaml(dump_yaml(content), name="x") == content


def test_dumping_keeps_the_order_of_keys() -> None:
    assert list(parse_yaml(dump_yaml({"z": 1, "a": 2}), name="x")) == ["z", "a"]


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("1: x", "the key 1 is not text"),
        ("true: x", "the key True is not text"),
        ("? [a]\n: x", "is not text"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("a: [1", "line 1, column"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: *x", "undefined alias"),
        ("a: &x [*x]", "recursive"),
        ("a: &x {b: *x}", "recursive"),
        ("a\n---\nb", "another document"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("a: !!int ''", "invalid literal"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!map [b]", "a mapping was expected"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("[" * 45 + "]" * 45, "more than 40 levels"),
        ("[" * 5000, "recursion"),
        ('"\\ud800"', "cannot be written"),
        ('"\\0"', "cannot be written"),
        ("\x07", "special characters"),
    ],
)
def test_what_is_no_plain_yaml_is_an_error_that_names_the_file(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"'mine\.yaml' is not valid YAML") as caught:
        parse_yaml(text, name="mine.yaml")
    assert said in caught.value.what
    assert "\n" not in caught.value.what


def test_aliases_of_aliases_are_not_blown_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="100,000 values"):
        parse_yaml("\n".join(lines), name="x")


def test_an_alias_repeats_a_value() -> None:
    assert parse_yaml("a: &x {n: 1}\nb: *x", name="x") == {"a": {"n": 1}, "b": {"n": 1}}


def test_a_merge_key_is_a_key_like_any_other_since_yaml_1_2_has_none() -> None:
    assert parse_yaml("a: &x {n: 1}\nb: {<<: *x}", name="x")["b"] == {"<<": {"n": 1}}


@given(text=st.text(max_size=200))
@example(text="%YAML 9.9\n---\na")
@example(text="? ")
@example(text="&a")
@example(text="!!seq a")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        content = parse_yaml(text, name="x")
    except ConfigError:
        return
    json.dumps(content)


@given(text=st.text(st.sampled_from("ab:{}[],-?&*!|>'\"#%@` \n\t1.e+~<"), max_size=60))
def test_any_text_of_yaml_signs_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text, name="x")
    except ConfigError:
        return


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"# only a comment\n", "is empty"), (b"- a\n", "holds list"), (b"text", "holds str"),
     (b"a: \xff", "cannot read"), (b"a: 1\na: 2", "stands twice")],
)  # fmt: skip
def test_a_file_that_holds_no_mapping_is_an_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = files.write_bytes(tmp_path / "mine.yaml", content)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        read_yaml(path)
    assert said in caught.value.what


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    files.write_text(tmp_path / "digits.yaml", "a: 1")
    with pytest.raises(ConfigError, match="does not exist") as caught:
        read_yaml(tmp_path / "digit.yaml")
    assert "'digits'" in caught.value.todo


def test_a_folder_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_yaml(files.write_bytes(tmp_path / "a.yaml", b"\xef\xbb\xbfa: 1")) == {"a": 1}


# -- merging ----------------------------------------------------------------------------------------------------


@given(base=MAPPINGS)
def test_merging_nothing_changes_nothing(base: dict[str, Any]) -> None:
    assert merge(base, {}) == base


@given(base=MAPPINGS, change=MAPPINGS)
def test_merging_twice_is_merging_once(base: dict[str, Any], change: dict[str, Any]) -> None:
    once = merge(base, change)
    assert merge(once, change) == once


@given(base=MAPPINGS, change=MAPPINGS)
def test_merging_changes_neither_side_and_shares_nothing(base: dict[str, Any], change: dict[str, Any]) -> None:
    before = copy.deepcopy((base, change))
    merged = merge(base, change)
    for value in merged.values():
        if isinstance(value, dict):
            value["new"] = 1
    assert (base, change) == before


@given(base=MAPPINGS, change=MAPPINGS)
def test_what_a_change_says_holds_afterwards(base: dict[str, Any], change: dict[str, Any]) -> None:
    merged = merge(base, change)
    for key, value in change.items():
        if value is None:
            assert key not in merged
        elif not isinstance(value, dict):
            assert merged[key] == value


@given(base=MAPPINGS, change=MAPPINGS)
def test_what_a_change_does_not_name_stays(base: dict[str, Any], change: dict[str, Any]) -> None:
    change.pop("name", None)
    merged = merge(base, change)
    assert all(merged[key] == base[key] for key in base if key not in change)


@pytest.mark.parametrize(
    ("base", "change", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {}),
        ({}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 2}}, {"a": 1}, {"a": 1}),
        ({"o": {"name": "sgd", "momentum": 1}}, {"o": {"name": "adamw", "eps": 2}}, {"o": {"name": "adamw", "eps": 2}}),
        ({"o": {"name": "sgd", "momentum": 1}}, {"o": {"name": "sgd", "eps": 2}},
         {"o": {"name": "sgd", "momentum": 1, "eps": 2}}),
        ({"o": {"name": "sgd", "momentum": 1}}, {"o": {"momentum": 2}}, {"o": {"name": "sgd", "momentum": 2}}),
        ({"o": {"name": "sgd", "momentum": 1}}, {"o": "sgd"}, {"o": "sgd"}),
        ({"o": "sgd"}, {"o": {"momentum": 2}}, {"o": {"name": "sgd", "momentum": 2}}),
        ({"o": "sgd"}, {"o": {"name": "adamw", "eps": 2}}, {"o": {"name": "adamw", "eps": 2}}),
        ({"m": {"backbone": "x"}}, {"m": {"name": "timm", "pretrained": True}},
         {"m": {"backbone": "x", "name": "timm", "pretrained": True}}),
        ({"p": ["a", {"name": "b", "w": 1}]}, {"p": {"1": {"w": 2}}}, {"p": ["a", {"name": "b", "w": 2}]}),
        ({"p": ["a", "b"]}, {"p": {"0": {"w": 2}, "1": "c"}}, {"p": [{"name": "a", "w": 2}, "c"]}),
        ({"p": ["a", "b"]}, {"p": {"2": "c"}}, {"p": {"2": "c"}}),
        ({"p": ["a", "b"]}, {"p": {}}, {"p": {}}),
    ],
)  # fmt: skip
def test_a_merge_goes_key_by_key_and_a_renamed_component_begins_anew(base: Any, change: Any, merged: Any) -> None:
    assert merge(base, change) == merged


def test_stage_defaults_go_under_every_stage_component_by_component() -> None:
    content = {
        "train": {"batch_size": 8, "optimizer": {"name": "sgd", "momentum": 0.5}, "mix": "mixup"},
        "stages": {"a": None, "b": {"batch_size": 4, "optimizer": {"nesterov": True}, "mix": None}},
    }
    assert with_stage_defaults(content) == {
        "stages": {
            "a": {"batch_size": 8, "optimizer": {"name": "sgd", "momentum": 0.5}, "mix": "mixup"},
            "b": {"batch_size": 4, "optimizer": {"name": "sgd", "momentum": 0.5, "nesterov": True}},
        }
    }


# -- --set ------------------------------------------------------------------------------------------------------


def test_an_assignment_sets_one_value_and_later_ones_win() -> None:
    content = override({"stages": {"a": {"lr": "find"}}}, ["stages.a.lr=1e-3", "stages.a.lr=3e-4", "x.y={z: [1]}"])
    assert content == {"stages": {"a": {"lr": 3e-4}}, "x": {"y": {"z": [1]}}}


def test_an_assignment_of_nothing_removes_the_key() -> None:
    assert override({"a": {"b": 1, "c": 2}}, ["a.b=", "a.c=null"]) == {"a": {}}


def test_only_the_first_equals_sign_divides() -> None:
    assert override({}, ["title=a=b"]) == {"title": "a=b"}


def test_a_parameter_of_a_short_component_may_be_set() -> None:
    assert override({"tta": "random"}, ["tta.n=8"]) == {"tta": {"name": "random", "n": 8}}


@pytest.mark.parametrize("text", ["", "=", "a", "=1", "a.=1", ".a=1", "a..b=1", ".".join("a" * 30) + "=1"])
def test_what_is_no_assignment_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an assignment") as caught:
        override({}, [text])
    assert "--set" in caught.value.todo


def test_an_assignment_to_a_stage_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no stage 'haed'") as caught:
        override({"stages": {"head": {}, "all": {}}}, ["stages.haed.lr=1"])
    assert "'head'" in caught.value.todo


def test_a_value_that_is_no_yaml_is_an_error() -> None:
    with pytest.raises(ConfigError, match="is not valid YAML"):
        override({}, ["a={b"])


@given(text=st.text(max_size=30))
def test_any_assignment_is_applied_or_refused(text: str) -> None:
    try:
        override(digits(), [text])
    except ConfigError:
        return


# -- experiments ------------------------------------------------------------------------------------------------


def test_an_experiment_says_only_what_differs(write: Callable[..., Workspace]) -> None:
    workspace = write(wide="model: {backbone: resnet18}\nstages: {cycles: {lr: 1e-3}}")
    base, made = load_competition(workspace, "digits"), load_competition(workspace, "digits", experiment="wide")
    assert (made.name, made.experiment, base.experiment) == ("digits", "wide", "baseline")
    assert (made.model.backbone, made.stages["cycles"].lr) == ("resnet18", 1e-3)
    assert made.stages["cycles"].schedule == base.stages["cycles"].schedule


def test_a_chain_of_experiments_is_applied_from_the_baseline_on(write: Callable[..., Workspace]) -> None:
    workspace = write(a="seed: 1\ntitle: a", b="extends: a\nseed: 2\nmetric: null\nmetric2: 1", c="extends: b\nseed: 3")
    content = read_document(workspace, "digits", "c", ["title=set"])
    assert (content["seed"], content["title"], content["metric2"]) == (3, "set", 1)
    assert "metric" not in content
    assert "extends" not in content


@pytest.mark.parametrize("parent", ["baseline", "digits", "null"])
def test_an_experiment_may_say_that_it_extends_the_baseline(write: Callable[..., Workspace], parent: str) -> None:
    assert load_competition(write(a=f"extends: {parent}\nseed: 5"), "digits", experiment="a").seed == 5


def test_the_baseline_may_be_asked_for_by_name(write: Callable[..., Workspace]) -> None:
    assert load_competition(write(), "digits", experiment="baseline") == load_competition(write(), "digits")


def test_experiments_that_extend_each_other_are_an_error(write: Callable[..., Workspace]) -> None:
    workspace = write(a="extends: b", b="extends: a")
    with pytest.raises(ConfigError, match="a -> b -> a") as caught:
        load_competition(workspace, "digits", experiment="a")
    assert "extends itself" in caught.value.what


@pytest.mark.parametrize("parent", ["[a]", "5", "true", "''", "../x", "{a: b}"])
def test_extending_what_is_no_experiment_is_an_error(write: Callable[..., Workspace], parent: str) -> None:
    with pytest.raises(ConfigError):
        load_competition(write(a=f"extends: {parent}"), "digits", experiment="a")


def test_a_missing_experiment_names_the_nearest(write: Callable[..., Workspace]) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_competition(write(wide="seed: 1"), "digits", experiment="wid")
    assert "'wide'" in caught.value.todo


def test_a_missing_competition_names_the_nearest(write: Callable[..., Workspace]) -> None:
    with pytest.raises(ConfigError, match="there is no competition 'digit'") as caught:
        load_competition(write(), "digit")
    assert "'digits'" in caught.value.todo


# -- problems ---------------------------------------------------------------------------------------------------


def test_the_yaml_these_tests_change_has_no_problems() -> None:
    assert problems({}) == []


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    change = {
        "task": "single_lable", "soruce": "embedded", "folds": {"n": 0, "strategy": "stratifed"},
        "input": {"size": "big", "chanels": 1}, "metric": {"name": "log_loss", "epsilon": 1},
        "train": {"batch_sise": 3, "accumulate": "two", "optimizer": {"name": "adamw", "betas": 0.9}},
        "stages": {"cycles": {"schedule": {"name": "sgdr", "cycels": 3}, "keep": ["cycle"], "loss": "crossentropy"},
                   "more": {"schedul": 1, "clip": -1}},
        "tta": {"name": "randm", "n": 3}, "plugins": ["missing.py"],
    }  # fmt: skip
    assert sorted(places(change)) == sorted(
        ["task", "soruce", "folds.n", "folds.strategy", "input.size", "input.chanels",
         "metric.epsilon", "train.batch_sise", "train.accumulate", "stages.cycles.optimizer.betas",
         "stages.more.optimizer.betas", "stages.cycles.schedule.cycels", "stages.cycles.keep.0", "stages.cycles.loss",
         "stages.more.schedul", "stages.more.clip", "tta", "plugins.0"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"soruce": 1}, "soruce: unknown key (did you mean 'source'?)"),
        ({"data": {"trian": {}}}, "data.trian: unknown key (did you mean 'train'?)"),
        ({"data": {"test": {"image": "x"}}}, "data.test.image: unknown key (did you mean 'images'?)"),
        ({"stages": {"cycles": {"epoch": 1}}}, "stages.cycles.epoch: unknown key"),
        ({"stages": {"cycles": {"acumulate": 1}}}, "stages.cycles.acumulate: unknown key (did you mean 'accumulate'?)"),
        ({"train": {"acumulate": 1}}, "train.acumulate: unknown key (did you mean 'accumulate'?)"),
        ({"name": "digits"}, "name: unknown key"),
        ({"experiment": "x"}, "experiment: unknown key"),
        ({"trian": {}}, "trian: unknown key (did you mean 'train'?)"),
        ({"<<": {"seed": 1}}, "<<: unknown key"),
        ({"metric": "log_los"}, "metric: unknown metric 'log_los' (did you mean 'log_loss'?)"),
        ({"folds": {"strategy": "kfolds"}}, "folds.strategy: unknown fold strategy 'kfolds' (did you mean 'kfold'?)"),
        ({"model": {"name": "tim"}}, "model.name: unknown model 'tim' (did you mean 'timm'?)"),
        ({"model": {"options": {"dropot": 1}}}, "model.options.dropot: the model 'timm' has no such parameter"),
        ({"stages": {"cycles": {"monitor": "acuracy"}}}, "stages.cycles.monitor: unknown metric 'acuracy'"),
        ({"stages": {"cycles": {"schedule": {"cycles": "3"}}}}, "stages.cycles.schedule.cycles: should be a valid int"),
        ({"metric": "rmse"}, "metric: the metric 'rmse' is not for the task 'single_label' (for regression)"),
        ({"input": {"size": "x"}}, "input.size: should be a valid integer or a valid array, got 'x'"),
        ({"input": {"size": [1]}}, "input.size: should be a valid integer or longer, got [1]"),
        ({"input": {"size": [1, "x"]}}, "input.size.1: should be a valid integer, got 'x'"),
        ({"submission": {"gzip": "no"}}, "submission.gzip: should be true or false, got 'no'"),
        ({"stages": {"cycles": {"lr": float("nan")}}}, "stages.cycles.lr: should be "),
        ({"stages": {"cycles": {"lr": 0}}}, "stages.cycles.lr: should be "),
        ({"stages": {"cycles": {"clip": float("inf")}}}, "stages.cycles.clip: should be a finite number, got inf"),
        ({"stages": {"cycles": {"range_test": {"start": 1, "end": 1}}}}, "stages.cycles.range_test.end: is not above"),
        ({"seed": True}, "seed: should be a valid integer, got True"),
        ({"seed": "1"}, "seed: should be a valid integer, got '1'"),
        ({"seed": -1}, "seed: should be greater than or equal to 0, got -1"),
        ({"train": [1]}, "train: should be a mapping of stage settings, got [1]"),
        ({"plugins": ["../evil.py"]}, "plugins.0: "),
        ({"ensemble": {"members": ["cycle"]}}, "ensemble.members.0: 'cycle' is neither a stage nor `stage-cycle`"),
        ({"input": {"mean": [0.5]}}, "input.mean: stands without `std`"),
        ({"input": {"mean": [0.5, 0.5], "std": [1.0, 1.0]}}, "input.mean: 2 values for 1 channels"),
        ({"stages": {"cycles": {"keep": []}}}, "stages: no stage keeps a model to predict with"),
    ],
)  # fmt: skip
def test_a_problem_has_its_path_and_the_nearest_name(change: dict[str, Any], said: str) -> None:
    found = problems(change)
    assert any(text.startswith(said) for text in found), found
    assert len({text.partition(": ")[0] for text in found}) <= 2


@pytest.mark.parametrize("key", ["task", "metric", "stages"])
def test_a_missing_section_is_named(key: str) -> None:
    assert problems({key: None}) == [f"{key}: this key is needed (`{key}: ...`)"]


@pytest.mark.parametrize("name", ["a-1", "int", "float-x", "Stage", "0"])
def test_the_path_of_a_problem_has_the_whole_name_of_its_stage(name: str) -> None:
    assert places({"stages": {name: {"batch_size": "x"}}}) == [f"stages.{name}.batch_size"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a.b", "-a", "é", "x" * 61])
def test_a_stage_has_a_name_that_can_be_part_of_a_file_name(name: str) -> None:
    assert places({"stages": {name: {}}}) == [f"stages.{name}"]


@pytest.mark.parametrize("name", ["previous", "fresh"])
def test_a_stage_has_no_name_that_start_uses(name: str) -> None:
    assert places({"stages": {name: {}}}) == [f"stages.{name}"]


def test_a_stage_starts_from_an_earlier_one() -> None:
    assert problems({"stages": {"more": {"start": "cycles"}}}) == []
    assert places({"stages": {"cycles": {"start": "more"}, "more": {}}}) == ["stages.cycles.start"]
    assert places({"stages": {"cycles": {"start": "cycles"}}}) == ["stages.cycles.start"]


def test_after_a_stage_on_all_rows_come_only_such_stages() -> None:
    assert places({"stages": {"cycles": {"subset": "full"}, "more": {}}}) == ["stages"]
    assert places({"stages": {"more": {"subset": "full"}}}) == []


def test_what_is_wrong_in_the_defaults_is_said_once_and_not_for_every_stage() -> None:
    change = {"train": {"batch_size": "x", "foo": 1}, "stages": {"a": {}, "b": {"batch_size": 3}, "c": {}}}
    assert places(change) == ["train.batch_size", "train.foo"]


def test_the_error_names_the_file_and_counts() -> None:
    with pytest.raises(ConfigError, match=r"^'mine\.yaml': 2 problems\n"):
        check({**digits(), "a": 1, "b": 2})


def test_plugins_are_loaded_before_names_are_checked(tmp_path: Path) -> None:
    text = (
        "import numpy\nfrom kbench.registry import register\n"
        "@register('metric', maximise=True)\ndef of_this_test(targets, predictions, table, *, k: int = 1): return 0.0\n"
    )
    files.write_text(tmp_path / "mine.py", text)
    change = {"plugins": ["mine.py"], "metric": {"name": "of_this_test", "k": 3}}
    assert problems(change, tmp_path) == []
    assert problems({**change, "metric": {"name": "of_this_test", "k": "x"}}, tmp_path) == [
        "metric.k: should be a valid integer, got 'x'"
    ]


@pytest.mark.parametrize("text", ["1/0", "def", "raise SystemExit", "import nothing_of_this_name"])
def test_a_plugin_that_fails_is_one_problem_among_the_others(tmp_path: Path, text: str) -> None:
    files.write_text(tmp_path / "mine.py", text)
    found = problems({"plugins": ["mine.py"], "seed": "x"}, tmp_path)
    assert [line.partition(": ")[0] for line in found] == ["seed", "plugins.0"]


# -- anything at all --------------------------------------------------------------------------------------------

JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT
    | st.sampled_from(["find", "auto", "none", "", "3e-4", "adamw", "cycles", "csv", "mine.py"])
    | st.lists(st.integers(-1, 3) | st.floats() | TEXT, max_size=3)
    | st.dictionaries(TEXT | st.sampled_from(["name", "n", "csv", "lr"]), VALUES, max_size=3)
)  # fmt: skip


def paths_of(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every key of a mapping."""
    if not isinstance(content, dict):
        return []
    return [(*path, key, *rest) for key, value in content.items() for rest in [(), *paths_of(value)]]


FULL = merge(digits(), {
    "plugins": [], "ensemble": {"members": ["cycles"]}, "loader": {"workers": 0, "valid_batch_size": 8},
    "model": {"options": {"dropout": 0.1}, "weights": "w.pt", "pretrained": False},
    "data": {"layout": {"name": "csv", "separator": " "}, "classes": ["a"], "metadata": [], "on_problem": "drop"},
    "input": {"reader": "image", "mean": [0.5], "std": [0.5], "crop": "squash", "cache": "on"},
    "stages": {"cycles": {"loss": {"name": "focal", "gamma": 1}, "mix": "mixup", "sampler": "balanced", "groups": [0],
                          "ema": 0.9, "clip": 1.0, "early_stop": 2, "monitor": "accuracy", "size": [32, 32]}},
})  # fmt: skip
PATHS = [tuple(path) for path in paths_of(FULL)]


def test_the_yaml_that_is_broken_in_many_ways_is_valid_before() -> None:
    check(FULL)


@st.composite
def broken(draw: st.DrawFn) -> dict[str, Any]:
    """Return the full YAML with some keys removed, renamed or given any value."""
    content = copy.deepcopy(FULL)
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4)):
        section: Any = content
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        way = draw(st.sampled_from(["remove", "rename", "replace", "add"]))
        value = section.pop(path[-1], None) if way != "add" else draw(JUNK)
        if way == "replace":
            section[path[-1]] = draw(JUNK)
        elif way != "remove":
            section[draw(TEXT | st.sampled_from(["name", "lr", "train", "stages"]))] = value
    return content


@given(content=broken())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_broken_yaml_is_a_competition_or_one_error(content: dict[str, Any]) -> None:
    try:
        made = check(content)
    except ConfigError as error:
        str(error).encode()
        return
    assert isinstance(made, Competition)
    made.hashes(plugins=[], weights=None)
    assert check(parse_yaml(dump_yaml(made.model_dump(mode="json")), name="x")) == made


@given(content=st.dictionaries(st.sampled_from([*FULL, "train"]) | TEXT, JUNK, max_size=8))
def test_any_mapping_is_a_competition_or_one_error(content: dict[str, Any]) -> None:
    try:
        check(content)
    except ConfigError:
        return


@given(
    position=st.integers(0, 900),
    length=st.integers(0, 60),
    text=st.text(st.sampled_from("a:{}[]\n 1'\"-#"), max_size=6),
)
def test_any_edit_of_the_text_is_a_competition_or_one_error(position: int, length: int, text: str) -> None:
    whole = DIGITS
    try:
        content = parse_yaml(whole[:position] + text + whole[position + length :], name="x")
        if isinstance(content, dict):
            check(content)
    except ConfigError:
        return


BODIES = (
    "", "1/0", "x", "raise KeyError", "register('metric')(1)", "register('x')", "import os; os.z", "def f(: ...", "\0",
    "@register('metric')\ndef log_loss(): ...", "raise SystemExit(3)",
)  # fmt: skip


@given(body=st.sampled_from(BODIES))
def test_any_plugin_is_loaded_or_one_error(body: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "plugins"
    files.write_text(folder / "any.py", f"from kbench.registry import register\n{body}\n")
    try:
        check({**digits(), "plugins": ["any.py"]}, folder)
    except ConfigError:
        return


# -- precomputed activations ---------------------------------------------------------------------------------------


def staged(train: dict[str, Any], **stages: dict[str, Any]) -> dict[str, Any]:
    """The digits YAML with other stages."""
    return {**digits(), "train": train, "stages": stages}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"groups": "all"}, "groups"),
        ({"groups": [1, 2]}, "groups"),
        ({"augment": "side_on"}, "augment"),
        ({"mix": "mixup"}, "mix"),
    ],
)
def test_what_cannot_be_together_with_precomputed_activations_is_named(change: dict[str, Any], where: str) -> None:
    stage = {"precompute": True, "groups": "head", "keep": ["cycles"], **change}
    with pytest.raises(ConfigError) as found:
        check(staged({}, only=stage))
    (line,) = found.value.what.splitlines()[1:]
    assert f"stages.only.{where}:" in line
    assert "precompute" in line


def test_a_stage_that_unfreezes_or_augments_switches_an_inherited_precompute_off() -> None:
    made = check(staged(
        {"precompute": True, "groups": "head"},
        head={}, augmented={"augment": "side_on"}, mixed={"mix": "mixup"}, all={"groups": "all", "keep": ["cycles"]},
    ))  # fmt: skip
    assert [stage.precompute for stage in made.stages.values()] == [True, False, False, False]


def test_an_augmentation_is_drawn_several_times_where_activations_are_of_several_draws() -> None:
    made = check(staged(
        {"precompute": True, "groups": "head", "draws": 4}, head={"augment": "side_on"}, mixed={"mix": "mixup"},
        all={"groups": "all", "keep": ["cycles"]},
    ))  # fmt: skip
    assert [stage.precompute for stage in made.stages.values()] == [True, False, False]


def test_an_augmentation_of_all_stages_and_precompute_of_all_stages_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="would have no effect"):
        check(staged({"precompute": True, "groups": "head", "augment": "side_on"}, head={"keep": ["cycles"]}))


# -- settings without effect ---------------------------------------------------------------------------------------

KEPT = {"keep": ["cycles"]}


@pytest.mark.parametrize(("stage", "where"), [
    ({"precompute": True, "groups": "head", "crop": "googlenet"}, "crop"),
    ({"precompute": True, "groups": "head", "crop": {"name": "random"}}, "crop"),
    ({"draws": 4}, "draws"),
    ({"precompute": True, "groups": "head", "draws": 4, "augment": "none", "crop": "centre"}, "draws"),
    ({"lr": [1e-4, 1e-3], "lr_decay": 3}, "lr_decay"),
    ({"lr": 1e-3, "lr_from_fold": 0}, "lr_from_fold"),
    ({"lr": [1e-4, 1e-3], "lr_from_fold": 0}, "lr_from_fold"),
    ({"lr": 1e-3, "lr_from_stage": "first"}, "lr_from_stage"),
    ({"lr_from_fold": 5}, "lr_from_fold"),
    ({"subset": "full", "early_stop": 2}, "early_stop"),
    ({"subset": "full", "schedule": {"name": "plateau", "epochs": 3}}, "schedule"),
    ({"subset": "full", "range_test": {"valid": True}}, "range_test.valid"),
    ({"average": {"of": "epochs"}}, "average"),
])  # fmt: skip
def test_a_setting_without_effect_is_a_problem_at_its_path(stage: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as found:
        check(staged({}, first=KEPT, only={**KEPT, **stage}))
    (line,) = found.value.what.splitlines()[1:]
    assert line.startswith(f"  - stages.only.{where}: ")


@pytest.mark.parametrize(("inherited", "stage"), [
    ({"crop": "googlenet"}, {"precompute": True, "groups": "head"}),
    ({}, {"precompute": True, "groups": "head", "crop": "squash"}),
    ({"lr_decay": 3}, {"lr": [1e-4, 1e-3]}),
    ({"lr_from_fold": 0}, {"lr": 1e-3}),
    ({"early_stop": 2}, {"subset": "full"}),
    ({"schedule": {"name": "plateau", "epochs": 3}}, {"subset": "full"}),
    ({"average": {"of": "epochs"}}, {}),
    ({}, {"average": {"of": "epochs"}, "keep": ["average"]}),
])  # fmt: skip
def test_what_a_stage_merely_inherits_may_have_no_effect(inherited: dict[str, Any], stage: dict[str, Any]) -> None:
    check(staged(inherited, first=KEPT, only={**KEPT, **stage}))


def test_a_fold_that_is_not_there_is_named_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr_from_fold: there is no fold 7 \(0 to 4\)"):
        check(staged({"lr_from_fold": 7}, only=KEPT))
    own = {"strategy": "predefined", "n": 5, "options": {"column": "fold"}}
    check({**staged({"lr_from_fold": 7}, only=KEPT), "folds": own})  # the column says how many there are


def test_what_a_run_was_trained_with_is_read_again_whatever_it_does_not_use() -> None:
    made = check(staged({"lr_from_fold": 0}, only={**KEPT, "lr": 1e-3}))
    record = made.model_dump(mode="json")
    assert record["stages"]["only"]["lr_from_fold"] == 0
    again = validate(record, file="run.yaml", folder=Path("nowhere"), name="mine", record=True)
    assert again.training_view() == made.training_view()
    with pytest.raises(ConfigError, match="stands beside a rate of its own"):
        check(record)
