from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from kbench import files, registry
from kbench.errors import ConfigError, KbenchError, Problem
from kbench.registry import bind, build, get, kinds, load_plugin, names, register


@pytest.fixture(autouse=True)
def parts() -> Iterator[None]:
    """Take back what a test registers."""
    for kind in ("step", "mix"):
        names(kind)
    known = {kind: dict(found) for kind, found in registry._parts.items()}
    modules = set(sys.modules)
    yield
    registry._parts.clear()
    registry._parts.update(known)
    registry._of_plugin.clear()
    for name in set(sys.modules) - modules:
        if name.startswith("kbench_plugin_"):
            del sys.modules[name]


def problems(function: Any, params: dict[str, Any], **more: Any) -> list[str]:
    """Register a function as a step and hold parameters against it."""
    register("step", "mine", **more.pop("meta", {}))(function)
    return [str(problem) for problem in bind("step", "mine", params, where="here", **more)]


def plugin(folder: Path, text: str, name: str = "mine.py") -> Path:
    """Write a plug-in."""
    return files.write_text(folder / name, f"from kbench.registry import register\n{text}\n")


# -- registering ------------------------------------------------------------------------------------------------


def test_a_function_is_registered_under_its_own_name_and_returned_unchanged() -> None:
    def my_step() -> int:
        return 3

    assert register("step")(my_step) is my_step
    assert "my_step" in names("step")
    assert build("step", "my_step", {}) == 3


def test_another_name_and_facts_may_be_given() -> None:
    register("step", "other", fast=True)(lambda: 0)
    assert get("step", "other").meta == {"fast": True}


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown kind 'stepp'") as caught:
        register("stepp")
    assert "'step'" in caught.value.todo


def test_a_name_of_another_function_is_refused() -> None:
    register("step", "mine")(lambda: 0)

    def other() -> int:
        return 1

    with pytest.raises(ConfigError, match="registered twice"):
        register("step", "mine")(other)


def test_what_has_no_readable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameters that can be read"):
        register("step", "mine")(dict)


def test_registering_the_same_function_again_does_nothing() -> None:
    def mine() -> None: ...

    register("step")(mine)
    register("step")(mine)


def test_every_kind_has_parts() -> None:
    assert all(names(kind) == sorted(names(kind)) and names(kind) for kind in kinds())


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown mix 'mixupp'") as caught:
        get("mix", "mixupp")
    assert "cutmix" in caught.value.expected
    assert "did you mean 'mixup'?" in caught.value.todo


# -- binding ----------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_one_problem_with_the_nearest_name() -> None:
    assert bind("mix", "mixupp", {"anything": 1}, where="stages.a.mix") == [
        Problem("stages.a.mix", "unknown mix 'mixupp'", "did you mean 'mixup'?")
    ]


def test_an_unknown_parameter_is_named_with_the_nearest() -> None:
    def part(*, alpha: float = 1.0) -> None: ...

    assert problems(part, {"alfa": 1}) == ["here.alfa: the step 'mine' has no such parameter (did you mean 'alpha'?)"]


def test_a_missing_parameter_is_named() -> None:
    def part(*, alpha: float) -> None: ...

    assert problems(part, {}) == ["here.alpha: the step 'mine' needs this parameter"]


def test_all_problems_are_found_at_once() -> None:
    def part(*, alpha: float, beta: int, gamma: str = "") -> None: ...

    found = problems(part, {"beta": "3", "gama": "x", "gamma": 1})
    assert [text.partition(":")[0] for text in found] == ["here.beta", "here.gama", "here.gamma", "here.alpha"]


def test_parameters_may_stand_elsewhere_than_the_name() -> None:
    def part(*, alpha: float = 1.0) -> None: ...

    assert problems(part, {"alpha": "x"}, options="model.options")[0].startswith("model.options.alpha: ")


def test_positional_and_private_parameters_are_not_for_a_yaml() -> None:
    def part(steps: int, *, _names: tuple[str, ...] = (), alpha: float = 1.0) -> None: ...

    found = problems(part, {"steps": 1, "_names": []})
    assert all("no such parameter" in text for text in found)
    assert len(found) == 2


def test_a_function_of_any_keywords_takes_any() -> None:
    def part(**options: Any) -> None: ...

    assert problems(part, {"whatever": [1, {"a": None}]}) == []


class Custom:
    """A type pydantic knows nothing of."""


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "3"), (int, True), (int, 1.0), (int, None), (int, [3]), (float, "1"), (float, True), (bool, 1),
        (bool, "yes"), (str, 3), (str, None), (list[int], 3), (list[int], [1, "2"]), (tuple[float, float], [1]),
        (tuple[float, float], [1, 2, 3]), (Literal["a", "b"], "c"), (int | None, "x"), (dict[str, int], {"a": "b"}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_problem(annotation: Any, value: Any) -> None:
    def part(*, x: Any) -> None: ...

    part.__annotations__["x"] = annotation
    [text] = problems(part, {"x": value})
    assert text.startswith("here.x: ")
    assert f"got {value!r}" in text


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 3), (int, 10**30), (float, 3), (float, 1e-3), (float | None, None), (bool, False), (str, ""),
        (list[int], []), (tuple[float, float], [0.9, 1]), (tuple[int, ...], [1, 2, 3]), (Literal["a", "b"], "a"),
        (list[float] | Literal["balanced"] | None, "balanced"), (dict[str, Any], {"a": [1]}), (Any, {"a": 1}),
        (Custom, 3), (list[Custom], 3), ("Any", 1),
    ],
)  # fmt: skip
def test_a_value_of_the_type_is_none(annotation: Any, value: Any) -> None:
    def part(*, x: Any) -> None: ...

    part.__annotations__["x"] = annotation
    assert problems(part, {"x": value}) == []


def test_several_possible_types_are_named_together() -> None:
    def part(*, x: list[float] | Literal["balanced"] | None = None) -> None: ...

    assert problems(part, {"x": "balancd"}) == ["here.x: should be a valid array or 'balanced', got 'balancd'"]


def test_a_part_of_another_task_is_a_problem() -> None:
    def part() -> None: ...

    found = problems(part, {}, meta={"tasks": ("regression",)}, task="single_label")
    assert found == ["here: the step 'mine' is not for the task 'single_label' (for regression)"]
    assert problems(part, {}, meta={"tasks": ("regression",)}, task="regression") == []
    assert problems(part, {}, meta={"tasks": ("regression",)}) == []


def test_annotations_that_cannot_be_read_are_a_problem() -> None:
    def part(*, x: NoSuchType = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    [text] = problems(part, {"x": 1})
    assert "NoSuchType" in text


def test_building_gives_what_is_asked_for_and_nothing_else() -> None:
    def part(count: int, *, alpha: float = 1.0, _names: tuple[str, ...] = ()) -> tuple[object, ...]:
        return count, alpha, _names

    register("step", "mine")(part)
    assert build("step", "mine", {"alpha": 2.0}, 7, _names=("a",), _unasked=1) == (7, 2.0, ("a",))


# -- plug-ins ---------------------------------------------------------------------------------------------------


def test_a_plugin_registers_its_parts(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, "@register('step')\ndef ours(*, x: int = 1): return x"))
    assert build("step", "ours", {"x": 4}) == 4


def test_a_plugin_is_loaded_once(tmp_path: Path) -> None:
    text = f"from pathlib import Path\nwith open({str(tmp_path / 'count')!r}, 'a') as f: f.write('x')"
    path = plugin(tmp_path, text)
    load_plugin(path)
    load_plugin(path)
    assert (tmp_path / "count").read_text() == "x"


def test_the_same_content_elsewhere_is_the_same_plugin(tmp_path: Path) -> None:
    text = "@register('step')\ndef ours(): return 1"
    load_plugin(plugin(tmp_path / "a", text))
    load_plugin(plugin(tmp_path / "b", text))
    assert build("step", "ours", {}) == 1


def test_a_changed_plugin_replaces_its_parts(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, "@register('step')\ndef ours(): return 1"))
    load_plugin(plugin(tmp_path, "@register('step')\ndef ours(): return 2"))
    assert build("step", "ours", {}) == 2


def test_of_two_competitions_the_plugin_loaded_last_counts(tmp_path: Path) -> None:
    first = plugin(tmp_path / "a", "@register('step')\ndef ours(): return 'a'")
    second = plugin(tmp_path / "b", "@register('step')\ndef ours(): return 'b'")
    for path, value in ((first, "a"), (second, "b"), (first, "a")):
        load_plugin(path)
        assert build("step", "ours", {}) == value


def test_two_plugins_of_one_competition_may_not_share_a_name(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, "@register('step')\ndef ours(): return 1", "one.py"))
    with pytest.raises(ConfigError, match="registered twice"):
        load_plugin(plugin(tmp_path, "@register('step')\ndef ours(): return 2", "two.py"))


def test_a_plugin_may_not_replace_a_part_of_kbench(tmp_path: Path) -> None:
    before = get("mix", "mixup")
    with pytest.raises(ConfigError, match="'mixup' is registered twice"):
        load_plugin(plugin(tmp_path, "@register('mix')\ndef mixup(): return 1"))
    assert get("mix", "mixup") is before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1/0", "ZeroDivisionError"),
        ("import not_a_module_at_all", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("register('step')(3)", "AttributeError"),
        ("\0", "source code"),
    ],
)
def test_a_plugin_that_fails_is_an_error_with_its_reason(tmp_path: Path, text: str, said: str) -> None:
    path = plugin(tmp_path, text)
    for _ in range(2):
        with pytest.raises(ConfigError, match="fails on import") as caught:
            load_plugin(path)
        assert said in caught.value.what
        assert str(path) in caught.value.todo


def test_a_plugin_that_fails_leaves_no_part_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_plugin(plugin(tmp_path, "@register('step')\ndef ours(): return 1\n1/0"))
    assert "ours" not in names("step")


def test_an_error_of_ours_in_a_plugin_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KbenchError, match="unknown kind 'losss'"):
        load_plugin(plugin(tmp_path, "@register('losss')\ndef ours(): return 1"))


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "a\0b.py"])
def test_a_missing_plugin_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match="does not exist"):
        load_plugin(tmp_path / name)


def test_a_file_that_is_no_python_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_plugin(plugin(tmp_path, "", "mine.txt"))


def test_what_a_plugin_prints_does_not_mix_with_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_plugin(plugin(tmp_path, "print('hello')"))
    assert capsys.readouterr() == ("", "hello\n")
