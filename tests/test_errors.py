from __future__ import annotations

import inspect
import pickle

import pytest

from kbench import errors
from kbench.errors import (
    ConfigError,
    DataError,
    KbenchError,
    Problem,
    ServiceError,
    UnknownOutcome,
    as_problems,
    check_number,
    counted,
    first_names,
    nearest,
    raise_all,
)

CLASSES = [
    item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, KbenchError)
]  # fmt: skip


@pytest.mark.parametrize("error", CLASSES, ids=lambda item: item.__name__)
def test_an_error_prints_its_three_parts_in_order(error: type[KbenchError]) -> None:
    lines = str(error("was wrong", "was wanted", "type this")).splitlines()
    assert lines == ["was wrong", "  expected: was wanted", "  next: type this"]


@pytest.mark.parametrize("error", CLASSES, ids=lambda item: item.__name__)
def test_an_error_survives_a_process_boundary(error: type[KbenchError]) -> None:
    copy = pickle.loads(pickle.dumps(error("a", "b", "c")))
    assert type(copy) is error
    assert (copy.what, copy.expected, copy.todo) == ("a", "b", "c")


def test_a_service_error_keeps_what_is_known_of_it_across_a_process_boundary() -> None:
    error = ServiceError("a", "b", "c", kind="rate_limited", transient=True, retry_after=2.5, sent=False)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, copy.transient, copy.retry_after, copy.sent) == ("rate_limited", True, 2.5, False)


def test_errors_that_a_program_treats_otherwise_have_exit_codes_of_their_own() -> None:
    codes = {error.__name__: error.exit_code for error in CLASSES if error.exit_code != 1}
    assert codes == {"UnknownOutcome": 3, "FoldBusy": 6}
    assert issubclass(UnknownOutcome, KbenchError)


def test_a_problem_shows_its_place_and_its_hint() -> None:
    assert str(Problem("stages.head.lr", "is wrong", "did you mean 1?")) == "stages.head.lr: is wrong (did you mean 1?)"


def test_a_problem_without_a_hint_has_no_brackets() -> None:
    assert str(Problem("a", "is wrong")) == "a: is wrong"


def test_an_error_becomes_a_problem_with_all_its_parts() -> None:
    [problem] = as_problems("here", ConfigError("a is 'x'", "a number", "write 3"))
    assert str(problem) == "here: a is 'x' (expected: a number; write 3)"


def test_an_error_that_lists_problems_becomes_as_many() -> None:
    with pytest.raises(DataError) as caught:
        raise_all([Problem("a", "one", "h"), Problem("b", "two")], error=DataError, subject="x", expected="y", todo="z")
    assert [str(item) for item in as_problems("here", caught.value)] == ["here: a: one (h)", "here: b: two"]
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_all_problems_are_in_one_error() -> None:
    with pytest.raises(DataError) as caught:
        raise_all([Problem("a", "one"), Problem("b", "two")], error=DataError, subject="x", expected="y", todo="z")
    assert caught.value.what == "x: 2 problems\n  - a: one\n  - b: two"


def test_no_problems_raise_nothing() -> None:
    raise_all([], error=DataError, subject="x", expected="y", todo="z")


def test_one_problem_is_counted_in_the_singular() -> None:
    with pytest.raises(ConfigError, match="x: 1 problem\n"):
        raise_all([Problem("a", "one")], error=ConfigError, subject="x", expected="y", todo="z")


def test_a_near_name_is_suggested() -> None:
    assert nearest("cross_entrpy", ["focal", "cross_entropy", "bce"]) == "did you mean 'cross_entropy'?"


def test_without_a_near_name_all_names_are_shown_sorted() -> None:
    assert nearest("zzz", ["focal", "bce"]) == "known: bce, focal"


def test_without_any_name_that_is_said() -> None:
    assert nearest("zzz", []) == "none is known"


def test_many_names_are_cut_and_the_rest_is_counted() -> None:
    assert first_names(list("abcdefg"), limit=2) == "'a', 'b' and 5 more"
    assert first_names(["a"]) == "'a'"


def test_numbers_are_counted_with_their_noun() -> None:
    assert (counted(1, "row"), counted(2000, "row"), counted(0, "row")) == ("1 row", "2,000 rows", "0 rows")


@pytest.mark.parametrize(
    ("value", "interval", "whole"),
    [(0, "[0, 1)", False), (0.999, "[0, 1)", False), (1, "(0, inf)", True), (-5, "(-inf, inf)", True)],
)
def test_a_number_inside_its_interval_passes(value: float, interval: str, whole: bool) -> None:
    check_number("x", value, interval, whole=whole)


@pytest.mark.parametrize(
    ("value", "interval", "whole"),
    [
        (1, "[0, 1)", False),
        (0, "(0, inf)", False),
        (float("nan"), "[0, 1]", False),
        (float("inf"), "(0, inf)", False),
        (True, "[0, 1]", False),
        ("1", "[0, 1]", False),
        (None, "[0, 1]", False),
        (1.5, "[0, 9]", True),
        (1.0, "[0, 9]", True),
    ],
)
def test_what_is_outside_or_no_number_is_refused_with_the_interval(value: object, interval: str, whole: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        check_number("alpha", value, interval, whole=whole)
    assert interval in caught.value.expected
    assert "alpha" in caught.value.what
    assert f"'{value}'" in caught.value.what


def test_names_show_the_signs_that_do_not_show() -> None:
    assert first_names(["cat\u200b", "cat\u00a0", "cafe\u0301", "café", "cat\n"]) == (
        "'cat\\u200b', 'cat\\xa0', 'cafe\\u0301', 'café', 'cat\\n'"
    )
    assert nearest("café", ["cafe\u0301", "dog"]) == "did you mean 'cafe\\u0301'?"
