from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbench import files
from kbench.errors import ConfigError, DataError
from kbench.workspace import RunPaths, Workspace, check_name, choose, find_workspace


def add(workspace: Workspace, *names: str) -> None:
    """Give a workspace competitions; their content does not matter here."""
    for name in names:
        files.write_text(workspace.competition(name), "title: x\n")


@pytest.mark.parametrize("name", ["a", "A-b_c.d+e", "0", "dogs-vs-cats", "x" * 120, "baseline-s0"])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name(name, of="a run") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a b", ".hidden", "-x", "a..b", "a\n", "a\0", "é", "x" * 121, "a\\b", "_a"]
)
def test_a_name_that_is_no_safe_file_name_is_refused_with_one_that_is(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a run") as caught:
        check_name(name, of="a run")
    suggested = caught.value.todo.rpartition("'")[0].rpartition("'")[2]
    assert check_name(suggested, of="a run") == suggested


@given(name=st.text(max_size=40))
def test_no_accepted_name_leaves_its_folder(name: str) -> None:
    try:
        check_name(name, of="a run")
    except ConfigError:
        return
    path = Path("runs") / name
    assert path.name == name
    assert path.parent == Path("runs")


def test_the_workspace_is_the_nearest_folder_above_with_competitions(workspace: Workspace) -> None:
    inner = workspace.root / "a" / "b"
    inner.mkdir(parents=True)
    assert find_workspace(inner) == workspace
    (workspace.root / "a" / "competitions").mkdir()
    assert find_workspace(inner) == Workspace(workspace.root / "a")


def test_the_current_folder_is_where_the_search_begins(workspace: Workspace) -> None:
    assert find_workspace() == workspace


def test_a_file_called_competitions_makes_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "competitions").write_text("")
    with pytest.raises(ConfigError, match="not in a kbench workspace") as caught:
        find_workspace(tmp_path)
    assert "kbench init" in caught.value.todo


def test_a_current_folder_that_was_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="was removed"):
        find_workspace()


def test_data_and_runs_lie_in_the_workspace(workspace: Workspace) -> None:
    assert workspace.data("x") == workspace.root / "data" / "x"
    assert workspace.run("x", "r").root == workspace.root / "runs" / "x" / "r"
    assert workspace.cache() == workspace.root / "data" / ".cache"


def test_data_and_runs_may_be_moved(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("KBENCH_DATA", "~/big")
    monkeypatch.setenv("KBENCH_RUNS", "elsewhere")
    assert workspace.data("x") == home / "big" / "x"
    assert workspace.cache() == home / "big" / ".cache"
    assert workspace.runs("x") == workspace.root / "elsewhere" / "x"
    assert workspace.folds("x") == workspace.root / "folds" / "x.csv"


def test_an_empty_setting_moves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBENCH_DATA", "")
    assert workspace.data("x") == workspace.root / "data" / "x"


def test_the_home_of_nobody_is_a_folder_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBENCH_RUNS", "~nobody-of-this-name/runs")
    assert workspace.runs("x") == workspace.root / "~nobody-of-this-name" / "runs" / "x"


@pytest.mark.parametrize("name", ["../x", "a/b", ""])
def test_names_from_the_user_never_leave_the_workspace(workspace: Workspace, name: str) -> None:
    for path in (workspace.competition, workspace.own):
        with pytest.raises(ConfigError):
            path(name)
    with pytest.raises(ConfigError):
        workspace.run("x", name)
    with pytest.raises(ConfigError):
        workspace.experiment("x", name)


def test_every_place_of_a_run_is_inside_it(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "baseline-s0")
    fold = run.fold(3)
    assert run.name == "baseline-s0"
    places = [run.config, run.manifest, run.env, run.score, run.plugins, run.pictures, run.predictions("oof")]
    places += [fold.log, fold.console, fold.plan, fold.status, fold.last, fold.lock, fold.lr_find("head")]
    places += [fold.snapshot("head", "0"), fold.predictions("oof", "head-0"), run.fold("full").log]
    assert all(path.is_relative_to(run.root) for path in places)
    assert len(set(places)) == len(places)


def test_snapshots_are_listed_by_name(tmp_path: Path) -> None:
    fold = RunPaths(tmp_path).fold(0)
    for tag in ("1", "0", "best"):
        files.write_json(fold.snapshot("head", tag), {})
    assert [path.name for path in fold.snapshots()] == [f"snapshot-head-{tag}.json" for tag in ("0", "1", "best")]


def test_competitions_are_the_yamls_sorted(workspace: Workspace) -> None:
    add(workspace, "b", "a")
    files.write_text(workspace.experiment("a", "exp"), "")
    files.write_text(workspace.schema, "{}")
    assert workspace.competition_names() == ["a", "b"]


def test_a_choice_is_kept_while_its_competition_exists(workspace: Workspace) -> None:
    add(workspace, "a")
    assert workspace.chosen() is None
    workspace.choose("a")
    assert workspace.chosen() == "a"
    files.remove(workspace.competition("a"))
    assert workspace.chosen() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_choice_is_an_error_with_a_remedy(workspace: Workspace, text: str) -> None:
    files.write_text(workspace.choice, text)
    with pytest.raises((ConfigError, DataError), match="kbench"):
        workspace.chosen()


# -- which competition ------------------------------------------------------------------------------------------


def test_what_is_named_comes_first(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    add(workspace, "a", "b", "c")
    monkeypatch.setenv("KBENCH_COMPETITION", "b")
    workspace.choose("a")
    assert choose(workspace, "c") == "c"


def test_the_environment_comes_before_the_choice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    add(workspace, "a", "b")
    monkeypatch.setenv("KBENCH_COMPETITION", "b")
    workspace.choose("a")
    assert choose(workspace, None) == "b"


def test_the_choice_comes_before_digits(workspace: Workspace) -> None:
    add(workspace, "a", "digits")
    workspace.choose("a")
    assert choose(workspace, None) == "a"


def test_the_only_competition_needs_no_choice(workspace: Workspace) -> None:
    add(workspace, "a")
    assert choose(workspace, None) == "a"


def test_without_a_choice_digits_is_taken_and_that_is_said(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    add(workspace, "a", "digits")
    assert choose(workspace, None) == "digits"
    assert "digits" in capsys.readouterr().err


def test_several_competitions_and_no_choice_is_an_error(workspace: Workspace) -> None:
    add(workspace, "a", "b")
    with pytest.raises(ConfigError, match="no competition is chosen") as caught:
        choose(workspace, None)
    assert "a, b" in caught.value.expected
    assert "kbench use" in caught.value.todo


def test_no_competition_at_all_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="has no competition") as caught:
        choose(workspace, None)
    assert "kbench new" in caught.value.todo
