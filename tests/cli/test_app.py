"""The command line as a user meets it: words in, exit code, stdout and stderr out."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kbench import __version__, cli, files
from kbench.commands.workspace import shipped
from kbench.errors import KbenchError
from kbench.workspace import Workspace

pytestmark = pytest.mark.slow  # a few seconds together

COMMANDS = {
    str(item.name or item.callback.__name__): item.callback for item in cli.app.registered_commands if item.callback
}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def parts(self) -> tuple[str, str, str]:
        """The three parts of the error."""
        assert self.err.count("error: ") == 1, self.err
        what, _, rest = self.err.partition("error: ")[2].partition("\n  expected: ")
        expected, _, todo = rest.partition("\n  next: ")
        assert "Traceback" not in self.err
        return what.strip(), expected.strip(), todo.strip()


Kbench = Callable[..., Result]


@pytest.fixture
def kbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kbench:
    """Run the command line in this process."""

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["kbench", *words])
        capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def small(small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the trained workspace, with `classes` chosen, and the current folder in it."""
    root = tmp_path / "small"
    shutil.copytree(small_workspace, root, symlinks=True)
    monkeypatch.chdir(root)
    made = Workspace(root)
    made.choose("classes")
    return made


def edit(workspace: Workspace, old: str, new: str, name: str = "classes") -> None:
    """Change the YAML of a competition."""
    text = workspace.competition(name).read_text()
    assert old in text
    files.write_text(workspace.competition(name), text.replace(old, new))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kbench", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(kbench: Kbench, name: str) -> None:
    result = kbench(name, "--help")
    assert result.code == 0
    assert f"kbench {name}" in result.out
    assert (inspect.getdoc(COMMANDS[name]) or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_says_what_it_is_for(name: str) -> None:
    for parameter in inspect.signature(COMMANDS[name], eval_str=True).parameters.values():
        [info] = [item for item in parameter.annotation.__metadata__ if hasattr(item, "help")]
        assert info.help.endswith((".", "default: the chosen one.")), parameter.name


def test_help_lists_every_command(kbench: Kbench) -> None:
    result = kbench("-h")
    assert (result.code, result.err) == (0, "")
    assert all(f"\n  {name} " in result.out for name in COMMANDS)


def test_the_version_is_shown(kbench: Kbench) -> None:
    assert kbench("--version") == Result(0, f"kbench {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), "train"),
        (("train", "--fould", "1"), "--fold"),
        (("train", "--jobs", "0"), "--jobs"),
        (("train", "--jobs", "x"), "--jobs"),
        (("use",), "Missing argument"),
        (("list", "loss", "more"), "more"),
    ],
)
def test_a_word_that_does_not_fit_is_a_usage_error(kbench: Kbench, words: tuple[str, ...], said: str) -> None:
    result = kbench(*words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


# -- errors -----------------------------------------------------------------------------------------------------


def test_outside_a_workspace_a_command_says_what_to_do(
    kbench: Kbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kbench("check", "--json")
    assert (result.code, result.out) == (1, "")
    assert "kbench init" in result.parts[2]


def test_an_error_has_three_parts_on_stderr_and_no_traceback(kbench: Kbench, small: Workspace) -> None:
    result = kbench("check", "-c", "clases")
    what, expected, todo = result.parts
    assert (result.code, result.out) == (1, "")
    assert "there is no competition 'clases'" in what
    assert "classes, labels, numbers" in expected
    assert "did you mean 'classes'?" in todo


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_shows_the_traceback(kbench: Kbench, small: Workspace, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "environment":
        monkeypatch.setenv("KBENCH_DEBUG", "1")
    with pytest.raises(KbenchError, match="there is no competition"):
        kbench(*(["--debug"] if way == "option" else []), "check", "-c", "nope")


def test_a_traceback_ends_in_the_exit_code_of_an_error(small: Workspace) -> None:
    process = start(small.root, "--debug", "use", "nope")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert "Traceback" in err
    assert "did you mean" in err or "known:" in err


def test_a_failure_nobody_foresaw_is_a_message_too(
    kbench: Kbench, small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbench.commands.score.score", lambda *words, **options: {}["nowhere"])
    result = kbench("score")
    what, _, todo = result.parts
    assert result.code == 1
    assert what.startswith("a defect of kbench: KeyError")
    assert "kbench --debug" in todo


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("use", "clases"), "'classes'"),
        (("check", "-c", "clases"), "'classes'"),
        (("check", "-e", "wid"), "'wide'"),
        (("list", "los"), "'loss'"),
        (("list", "fold-strategi"), "'fold-strategy'"),
        (("score", "--run", "baseline"), "baseline-s0"),
        (("lr-find", "--stage", "al"), "'all'"),
        (("check", "--set", "stages.al.lr=1"), "'all'"),
        (("check", "--set", "trian.lr=1"), "'train'"),
        (("check", "--set", "metric=log_los"), "'log_loss'"),
        (("train", "--fold", "x"), "0 to 1"),
        (("train", "--fold", "2"), "0 to 1"),
        (("submit", "nope"), "leaderboard"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_one_that_is(
    kbench: Kbench, small: Workspace, words: tuple[str, ...], said: str
) -> None:
    files.write_text(small.experiment("classes", "wide"), "seed: 1")
    result = kbench(*words)
    assert result.code == 1
    assert result.out == ""
    assert said in " ".join(result.parts)


@pytest.mark.parametrize("text", ["", "a", "seed", "seed.=1", "seed={"])
def test_a_set_that_is_no_assignment_is_an_error(kbench: Kbench, small: Workspace, text: str) -> None:
    assert kbench("check", "--set", text).code == 1


def test_a_plugin_that_fails_is_named(kbench: Kbench, small: Workspace) -> None:
    files.write_text(small.own("classes") / "small.py", "1/0")
    result = kbench("check")
    assert result.code == 1
    assert "plugins.0: the plug-in" in result.parts[0]
    assert "ZeroDivisionError" in result.parts[0]


# -- JSON -------------------------------------------------------------------------------------------------------

JSON: dict[str, tuple[str, ...]] = {
    "list": (),
    "check": (),
    "download": (),
    "folds": (),
    "train": (),
    "score": (),
    "ensemble": (),
    "submit": (),
    "leaderboard": (),
    "predict": (),
    "lr-find": ("--stage", "all"),
    "sweep": ("seed=1,2",),
    "import": ("theirs", "--oof", "oof.csv", "--test", "test.csv"),
    "cache": (),
    "run": (),
    "inspect": (),
    "report": (),
    "doctor": ("--offline",),
    "pseudo-label": ("baseline-s0", "--threshold", "0.501"),
}
ELSEWHERE = {
    "demo": "the whole job on the digits, in `test_pipeline.py`",
    **dict.fromkeys(("compare", "status", "pack", "unpack"), "held to their schemas, in `test_automation.py`"),
    **dict.fromkeys(("export", "infer"), "in `test_export_and_infer.py`"),
    "push": "in `test_notebooks.py`",
}


def test_every_command_with_json_is_tested() -> None:
    with_json = {name for name, function in COMMANDS.items() if "json" in inspect.signature(function).parameters}
    assert with_json == {*JSON, *ELSEWHERE}


def predictions(path: Path, ids: list[str]) -> None:
    """Write a file of somebody else's predictions."""
    files.write_text(path, "id,left,right\n" + "".join(f"{name},0.4,0.6\n" for name in ids))


SLOW = {"sweep", "report", "inspect", "lr-find"}  # they have tests of their own


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in JSON])
def test_json_is_one_object_on_stdout_and_nothing_else(kbench: Kbench, small: Workspace, name: str) -> None:
    if name == "submit":
        kbench("ensemble")
    predictions(small.root / "oof.csv", [f"{row:04d}" for row in range(48)])
    predictions(small.root / "test.csv", [f"{row:04d}" for row in range(10)])
    result = kbench(name, *JSON[name], "--json")
    assert result.code == (0 if name != "doctor" else result.code), result.err
    assert result.json
    assert "NaN" not in result.out


@pytest.mark.parametrize(
    "words", [("list", "loss"), ("check", "--all"), ("train", "--fold", "0"), ("score", "-c", "labels")]
)
def test_json_of_other_forms_is_one_object_too(kbench: Kbench, small: Workspace, words: tuple[str, ...]) -> None:
    result = kbench(*words, "--json")
    assert result.code == 0, result.err
    assert result.json


def test_without_json_results_go_to_stdout_and_notes_to_stderr(kbench: Kbench, small: Workspace) -> None:
    result = kbench("score")
    assert result.code == 0
    assert "log_loss" in result.out
    assert "next: kbench ensemble" in result.err
    assert "next:" not in result.out


# -- the workspace ----------------------------------------------------------------------------------------------


def test_new_writes_whole_paths_and_asks_for_files_that_are_there(kbench: Kbench, small: Workspace) -> None:
    missing = kbench("new", "mine", "--data", "source/classes", "--solution", "source/nowhere.csv")
    assert "nowhere.csv' does not exist" in missing.parts[0]
    assert not small.competition("mine").exists()
    made = kbench("new", "mine", "--data", "source/../source/classes", "--solution", "source/classes/solution.csv")
    assert made.code == 0
    text = small.competition("mine").read_text()
    assert f"path: {small.root}/source/classes, solution: {small.root}/source/classes/solution.csv" in text
    assert "batch_size: 8," in text


def test_a_leaderboard_without_rows_says_so(kbench: Kbench, small: Workspace) -> None:
    result = kbench("leaderboard")
    assert (result.code, result.out) == (0, "")
    assert "no submission yet" in result.err


def test_init_makes_a_workspace_with_digits(kbench: Kbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kbench("init", "new/place").code == 0
    made = Workspace(tmp_path / "new" / "place")
    assert made.competition("digits").read_text() == shipped("digits")
    assert made.schema.is_file()


def test_init_leaves_what_is_there(kbench: Kbench, workspace: Workspace) -> None:
    files.write_text(workspace.competition("digits"), "title: mine\n")
    assert kbench("init").code == 0
    assert workspace.competition("digits").read_text() == "title: mine\n"


def test_list_shows_competitions_with_their_experiments_and_runs(kbench: Kbench, small: Workspace) -> None:
    files.write_text(small.experiment("classes", "wide"), "seed: 1")
    [row, *_] = kbench("list", "--json").json["rows"]
    assert row == {
        "competition": "classes",
        "current": "*",
        "experiments": "wide",
        "data": "yes",
        "runs": "baseline-s0",
    }


def test_list_shows_the_parts_of_a_kind_with_their_parameters(kbench: Kbench, workspace: Workspace) -> None:
    rows = {row["mix"]: row for row in kbench("list", "mix", "--json").json["rows"]}
    assert rows["mixup"]["parameters"] == "alpha=0.2, prob=1.0"
    assert rows["mixup"]["does"].startswith("Return mixup")


def test_the_chosen_competition_is_used(kbench: Kbench, small: Workspace) -> None:
    assert kbench("use", "labels").code == 0
    assert kbench("check", "--json").json["competition"] == "labels"


def test_the_environment_chooses_a_competition(
    kbench: Kbench, small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBENCH_COMPETITION", "numbers")
    assert kbench("check", "--json").json["competition"] == "numbers"
    assert kbench("check", "-c", "labels", "--json").json["competition"] == "labels"


def test_downloading_by_name_chooses_the_competition(kbench: Kbench, small: Workspace) -> None:
    assert kbench("download", "labels").code == 0
    assert small.chosen() == "labels"


# -- check ------------------------------------------------------------------------------------------------------


def test_check_counts_rows_targets_folds_and_sample(kbench: Kbench, small: Workspace) -> None:
    found = kbench("check", "--json").json
    assert {key: found[key] for key in ("rows", "targets", "folds", "test", "sample")} == {
        "rows": 48, "targets": 2, "folds": 2, "test": 10, "sample": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "where", "said"),
    [
        ("stages.all.schedule.warmup=2", "stages.all.schedule", "[0, 1)"),
        ("stages.all.schedule={name: cosine, epochs: 0}", "stages.all.schedule", "[1, 1000000]"),
        ("stages.all.optimizer={name: sgd, momentum: 2}", "stages.all.optimizer", "[0, 1)"),
        ("stages.all.loss={name: cross_entropy, label_smoothing: 3}", "stages.all.loss", "[0, 1)"),
        ("stages.all.loss={name: cross_entropy, class_weights: [1, 2, 3]}", "stages.all.loss", "2, one per output"),
        ("stages.all.loss={name: focal, alpha: -1}", "stages.all.loss", "per class"),
        ("stages.all.mix={name: mixup, alpha: -1}", "stages.all.mix", "(0, inf)"),
        ("stages.all.sampler={name: oversample, to: 2}", "stages.all.sampler", "(0, 1]"),
        ("stages.all.augment={name: pipeline, transforms: [Rotat]}", "stages.all.augment", "'Rotate'"),
        ("stages.all.augment={name: pipeline, transforms: [{name: Rotate, limit: x}]}", "stages.all.augment", "Rotate"),
        ("tta={name: random, n: 0}", "tta", "tta.n is '0'"),
        ("tta={name: five_crop, margin: 0.5}", "tta", "tta.margin is '0.5'"),
        ("submission.format.clip=0.7", "submission.format", "0.5"),
        ("submission.format={name: single_probability, target: up}", "submission.format", "left, right"),
        ("submission.format=value", "submission.format", "regression"),
        ("model={name: timm, backbone: resnet1o}", "model.backbone", "'resnet1"),
        ("model.weights=nowhere.pt", "model.weights", "does not exist"),
        ("data.train.csv=nowhere.csv", "data.train", "nowhere.csv"),
        ("submission.sample=nowhere.csv", "submission.sample", "nowhere.csv"),
    ],
)
def test_check_builds_every_part_once_and_names_what_cannot_be_built(
    kbench: Kbench, small: Workspace, setting: str, where: str, said: str
) -> None:
    result = kbench("check", "--set", setting)
    assert result.code == 1
    [line] = [text for text in result.parts[0].splitlines() if text.startswith("  - ")]
    assert line.startswith(f"  - {where}: ")
    assert said in line


def test_check_names_all_that_cannot_be_built_at_once(kbench: Kbench, small: Workspace) -> None:
    settings = ["stages.first.schedule.epochs=0", "stages.all.mix={name: mixup, prob: 2}", "tta={name: random, n: 0}"]
    result = kbench("check", *(word for text in settings for word in ("--set", text)))
    assert "3 problems" in result.parts[0]


def test_check_names_a_backbone_timm_lacks_beside_what_else_is_wrong(kbench: Kbench, small: Workspace) -> None:
    wrong = ["model={name: timm, backbone: resnet1o}", "metric=logloss", "stages.all.lr=fast"]
    what = kbench("check", *(word for text in wrong for word in ("--set", text))).parts[0]
    assert "'classes.yaml': 3 problems" in what
    assert "model.backbone: timm has no model 'resnet1o' (did you mean 'resnet" in what


def test_check_lists_what_is_wrong_with_rows_and_images_together(kbench: Kbench, small: Workspace) -> None:
    kbench("download")
    train = small.root / "source" / "classes" / "train.csv"
    files.write_text(train, train.read_text() + "0001,left,north,3\nzzzz,left,north,3\n")
    broken = train.parent / "train" / "0003.png"
    files.write_bytes(broken, broken.read_bytes()[:60])
    files.write_text(train.parent / "train" / "0004.png", "no picture")
    lines = kbench("check", "--images").parts[0].splitlines()
    assert lines[0] == "'classes': 4 problems"
    assert [line.partition("'")[0] for line in lines[1:]] == [
        "  - data.train: id: 1 repeated id: ",
        "  - data.train: data.images: 1 missing file: ",
        "  - images: 1 file of no known image format: ",
        "  - images: 1 file truncated: ",
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("train.csv", "0000,left", "0000,lefft", "lefft"),
        ("sample_submission.csv", "id,left,right", "id,lefft,right", "lefft"),
        ("sample_submission.csv", "0003,", "3,", "1 id of the sample is no test row: '3'"),
    ],
)
def test_check_holds_targets_and_test_rows_against_the_sample(
    kbench: Kbench, small: Workspace, file: str, old: str, new: str, said: str
) -> None:
    kbench("download")
    path = small.root / "source" / "classes" / file
    text = path.read_text()
    assert old in text
    files.write_text(path, text.replace(old, new, 1))
    what = kbench("check").parts[0]
    assert "  - submission: " in what
    assert said in what


def test_check_names_a_solution_that_is_not_there(kbench: Kbench, small: Workspace) -> None:
    files.remove(small.root / "source" / "classes" / "solution.csv")
    what = kbench("check").parts[0]
    assert "source.solution: the solution file" in what


@pytest.mark.parametrize("words", [("--full", "--fold", "0"), ("--smoke", "--fold", "0"), ("--smoke", "--jobs", "2")])
def test_options_that_exclude_each_other_are_refused(kbench: Kbench, small: Workspace, words: tuple[str, ...]) -> None:
    result = kbench("train", *words)
    assert result.code == 1
    assert words[0] in result.parts[0]


@pytest.mark.parametrize(("words", "said"), [
    ((), "kbench ensemble && kbench submit"),
    (("--set", "seed=3"), "kbench ensemble baseline-s3 && kbench submit"),
    (("--run", "mine", "-c", "classes"), "kbench ensemble mine -c classes && kbench submit -c classes"),
])  # fmt: skip
def test_what_to_type_after_a_training_sends_that_run(
    kbench: Kbench, small: Workspace, words: tuple[str, ...], said: str
) -> None:
    result = kbench("train", "--fold", "0", "--device", "cpu", *words)
    assert result.code == 0
    assert result.err.rstrip().endswith(f"next: {said}")


def test_check_warns_of_a_batch_too_large_for_the_data(kbench: Kbench, small: Workspace) -> None:
    result = kbench("check", "--set", "stages.all.batch_size=64")
    assert result.code == 0
    assert "stage 'all': about 24 images in batches of 64 are 1 update an epoch" in result.err


@pytest.mark.parametrize(("setting", "what"), [
    ("stages.all.lr=[0.1,0.2,0.3]", "stages.all.lr: lr has 3 values"),
    ("stages.all.weight_decay=[0.1]", "stages.all.weight_decay: weight_decay has 1 values"),
    ("stages.all.groups=[0,2]", "stages.all.groups: stages.*.groups names layer group 2"),
])  # fmt: skip
def test_check_holds_lists_and_groups_against_the_models_layer_groups(
    kbench: Kbench, small: Workspace, setting: str, what: str
) -> None:
    words = ("--set", "stages.all.lr_decay=1", "--set", setting)
    result = kbench("check", *words)
    assert result.code == 1
    assert "1 problem\n" in result.parts[0]
    assert what in result.parts[0]


def test_a_value_for_each_layer_group_passes_check(kbench: Kbench, small: Workspace) -> None:
    settings = ("lr_decay=1", "lr=[0.1,0.2]", "weight_decay=[0,0.1]", "groups=[-1]")
    assert kbench("check", *(word for text in settings for word in ("--set", f"stages.all.{text}"))).code == 0


def test_check_works_before_the_data_is_there(kbench: Kbench, small: Workspace) -> None:
    files.remove(small.data("classes"))
    result = kbench("check", "--json")
    assert (result.code, result.json["data"]) == (0, None)
    assert "kbench download classes" in result.err
    assert kbench("check", "--set", "stages.all.schedule.warmup=2").code == 1


def test_check_all_names_every_yaml_with_problems(kbench: Kbench, small: Workspace) -> None:
    files.write_text(small.experiment("classes", "wide"), "sed: 1")
    files.write_text(small.experiment("labels", "deep"), "stages: {all: {schedule: {warmup: 2}}}")
    result = kbench("check", "--all")
    what = result.parts[0]
    assert result.code == 1
    assert "2 problems" in what
    assert "classes/wide: 'wide.yaml': 1 problem" in what
    assert "labels/deep: stages.all.schedule: warmup is '2'" in what


def test_a_part_that_cannot_be_built_stops_training_before_it_begins(kbench: Kbench, small: Workspace) -> None:
    result = kbench("train", "--run", "new", "--set", "stages.all.schedule.warmup=2")
    assert result.code == 1
    assert "stages.all.schedule: warmup" in result.parts[0]
    assert "new" not in small.run_names("classes")


def test_a_fold_that_is_not_there_makes_no_run(kbench: Kbench, small: Workspace) -> None:
    assert kbench("train", "--run", "new", "--fold", "7").code == 1
    assert not small.run("classes", "new").root.exists()


# -- a run is trained in one way --------------------------------------------------------------------------------


def snapshot(workspace: Workspace, run: str = "baseline-s0") -> dict[str, str]:
    """Return the checksums of a run's snapshots."""
    paths = sorted(workspace.run("classes", run).root.glob("fold-*/snapshot-*.safetensors"))
    return {f"{path.parent.name}/{path.name}": files.sha256(path) for path in paths}


def test_what_is_trained_is_not_trained_again(kbench: Kbench, small: Workspace) -> None:
    before = snapshot(small)
    made = kbench("train", "--json").json
    rates = made.pop("rates")
    assert made == {"run": "baseline-s0", "trained": [], "done": [0, 1], "failed": [], "stopped": []}
    low, high = sorted(rates["first"]["folds"].values())
    assert rates == {"first": {"folds": rates["first"]["folds"], "mean": pytest.approx((low * high) ** 0.5),
                               "spread": pytest.approx(high / low)}}  # fmt: skip
    assert snapshot(small) == before


def test_a_changed_recipe_is_refused_with_the_difference_and_the_ways_on(kbench: Kbench, small: Workspace) -> None:
    edit(small, "lr: 0.02, lr_decay: 3", "lr: 0.01, lr_decay: 3")
    before = snapshot(small)
    result = kbench("train", "--fold", "1")
    what, expected, todo = result.parts
    assert result.code == 1
    assert what.splitlines()[0] == "the run 'baseline-s0' was trained otherwise:"
    assert [line.strip() for line in what.splitlines()[1:]] == ["stages.all.lr: 0.02 -> 0.01"]
    assert expected == "one run, one way of training"
    assert all(way in todo for way in ("-e NAME", "--run NAME", "--force"))
    assert snapshot(small) == before


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("seed: 1}", "seed: 1}\nseed: 0", None),
        ("  first: {groups: head", "  zero: {groups: head", "order: ['first', 'all'] -> ['zero', 'all']"),
        ("keep: [cycles]", "keep: [cycles], clip: 1.0", "stages.all.clip: None -> 1.0"),
        ("target: label", "target: label\n  classes: [right, left]", "data.classes: None -> ['right', 'left']"),
    ],
)
def test_every_difference_is_shown_by_its_path(
    kbench: Kbench, small: Workspace, old: str, new: str, shown: str | None
) -> None:
    edit(small, old, new)
    result = kbench("train")
    assert result.code == (0 if shown is None else 1)
    if shown is not None:
        assert shown in result.parts[0]


def test_a_changed_plugin_is_a_difference(kbench: Kbench, small: Workspace) -> None:
    path = small.own("classes") / "small.py"
    files.write_text(path, path.read_text() + "\n# changed\n")
    result = kbench("train")
    assert result.code == 1
    assert "plugins.small.py: " in result.parts[0]
    assert kbench("score").code == 0


@pytest.mark.parametrize(
    "setting", ["tta: none", "ensemble: {mean: geometric}", "title: other", "loader: {workers: 0}"]
)
def test_what_changes_no_weights_retrains_nothing(kbench: Kbench, small: Workspace, setting: str) -> None:
    text = small.competition("classes").read_text().replace("tta: flip\n", "").replace("title: Bright halves\n", "")
    files.write_text(small.competition("classes"), f"{text}{setting}\n")
    before = snapshot(small)
    assert kbench("train", "--json").json["trained"] == []
    assert kbench("ensemble").code == 0
    assert snapshot(small) == before


@pytest.mark.slow
def test_another_name_is_a_way_on(kbench: Kbench, small: Workspace) -> None:
    before = snapshot(small)
    made = kbench("train", "--fold", "0", "--set", "stages.all.lr=0.01", "--run", "slow", "--json").json
    assert {key: made[key] for key in ("run", "trained", "done", "failed")} == {
        "run": "slow", "trained": [0], "done": [], "failed": []
    }  # fmt: skip
    assert snapshot(small) == before
    assert kbench("score", "--run", "slow", "--json").json["missing"] == [1]


def test_an_experiment_is_a_way_on(kbench: Kbench, small: Workspace) -> None:
    files.write_text(small.experiment("classes", "slow"), "stages: {all: {lr: 0.01}}")
    before = snapshot(small)
    assert kbench("train", "--fold", "0", "-e", "slow", "--json").json["run"] == "slow-s0"
    assert snapshot(small) == before


def test_force_trains_the_run_anew(kbench: Kbench, small: Workspace) -> None:
    edit(small, "lr: 0.02, lr_decay: 3", "lr: 0.01, lr_decay: 3")
    before = snapshot(small)
    made = kbench("train", "--force", "--json").json
    after = snapshot(small)
    assert made["trained"] == [0, 1]
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_force_on_one_fold_trains_that_fold_to_the_same_weights(kbench: Kbench, small: Workspace) -> None:
    before = snapshot(small)
    assert kbench("train", "--fold", "1", "--force", "--json").json["trained"] == [1]
    assert snapshot(small) == before


def test_force_on_one_fold_does_not_mix_two_ways_of_training(kbench: Kbench, small: Workspace) -> None:
    edit(small, "lr: 0.02, lr_decay: 3", "lr: 0.01, lr_decay: 3")
    before = snapshot(small)
    assert kbench("train", "--fold", "1", "--force").code == 1
    assert snapshot(small) == before


def test_the_resolved_yaml_of_a_run_is_the_one_it_was_trained_with(kbench: Kbench, small: Workspace) -> None:
    edit(small, "metric: log_loss", "metric: accuracy")
    assert kbench("score", "--json").json["metric"] == "accuracy"
    edit(small, "lr_decay: 3", "lr_decay: 2")
    assert kbench("score").code == 0


DIVERGES = """
import torch
from kbench.registry import register
from kbench.training.losses.per_target import LossSum

@register("loss")
def diverges_for_tests():
    return lambda logits, target: LossSum(logits.sum() * float("nan"), torch.tensor(1.0))
"""


def test_folds_that_fail_are_named_and_have_an_exit_code_of_their_own(kbench: Kbench, small: Workspace) -> None:
    files.write_text(small.own("classes") / "diverges.py", DIVERGES)
    settings = ("--set", "plugins=[small.py, diverges.py]", "--set", "stages.first.lr=0.01",
                "--set", "stages.first.loss=diverges_for_tests", "--run", "bad")  # fmt: skip
    result = kbench("train", "--json", *settings)
    assert (result.code, result.json["failed"]) == (4, [0, 1])
    assert "folds 0, 1 failed" in result.err
    again = kbench("train", "--fold", "0", *settings)
    assert again.code in (1, 4)
    assert "--force" in again.err


# -- stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_go_on_and_goes_on(small: Workspace) -> None:
    words = ["train", "--fold", "0", "--run", "long", "--set", "stages.all.schedule.cycles=400"]
    process = start(small.root, *words)
    assert process.stderr is not None
    for line in process.stderr:
        if "fold 0  all 3/400" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "goes on from the last resume point" in err
    assert "Traceback" not in err
    again = start(small.root, *words)
    assert again.stderr is not None
    said = [again.stderr.readline() for _ in range(2)]
    again.kill()
    again.communicate()
    assert any("going on from stage all" in line for line in said), said


def test_a_reader_that_leaves_early_is_no_defect(small: Workspace) -> None:
    process = start(small.root, "list", "metric", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "defect" not in process.stderr.read()
    process.stderr.close()
    process.wait()
