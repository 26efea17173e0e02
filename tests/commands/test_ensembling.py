"""`kbench score` and `kbench ensemble` where something is fitted: thresholds, cut points, weights, members left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_runs import ROWS, TEST, written

from kbench.cli.app import app
from kbench.commands.ensemble import ensemble
from kbench.commands.import_run import import_run
from kbench.commands.train import train
from kbench.errors import ConfigError, PredictionError
from kbench.inference.mean import mean_of_task
from kbench.metrics.metric import make_metric
from kbench.runs.blend import EnsembleOptions, blend
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.workspace import Choice

COLUMNS = {"classes": ["left", "right"], "labels": ["bright", "left", "right"], "numbers": ["level", "width"]}


class Bench:
    """A workspace of small competitions whose members are imported, so that nothing has to be trained."""

    def __init__(self, root: Path) -> None:
        self.root = written(root)

    def set(self, name: str, text: str, *, submission: str | None = None) -> None:
        """Append lines to a competition's YAML; replace its submission format."""
        path = self.root / "competitions" / f"{name}.yaml"
        content = path.read_text()
        if submission is not None:
            content = "\n".join(
                f"submission: {submission}" if line.startswith("submission:") else line for line in content.splitlines()
            )
        path.write_text(f"{content.rstrip()}\n{text}\n")

    def write(self, name: str, **columns: list[Any]) -> None:
        """Replace target columns of the training table, and the sample's columns by these."""
        path = self.root / "source" / name / "train.csv"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column, values in columns.items():
            frame[column] = values
        frame.to_csv(path, index=False)

    def add(self, name: str, run: str, *, noise: float, seed: int) -> None:
        """Import a member: the truth with noise."""
        rng = np.random.default_rng(seed)
        choice = Choice(name, workspace=self.root)
        setup = open_experiment(choice)
        targets = np.asarray(setup.train.targets)
        names = setup.train.target_names
        for part, ids in (("oof", setup.train.ids), ("test", setup.test.ids)):
            truth = np.eye(len(names))[targets] if targets.ndim == 1 else np.nan_to_num(targets, nan=1)
            truth = truth[: len(ids)]
            values = truth + rng.normal(size=truth.shape) * noise
            if setup.competition.task != "regression":
                values = 1 / (1 + np.exp(-(4 * values - 2)))
            if setup.competition.task == "single_label":
                values /= values.sum(axis=1, keepdims=True)
            frame = pd.DataFrame(values, columns=list(names))
            frame.insert(0, "id", ids)
            frame.to_csv(self.root / f"{part}.csv", index=False)
        files = {part: str(self.root / f"{part}.csv") for part in ("oof", "test")}
        import_run(choice, run, oof=files["oof"], test=files["test"], force=True)

    def score(self, name: str, run: str) -> dict[str, Any]:
        """Return what `kbench score` records."""
        return open_run(Choice(name, run=run, workspace=self.root)).out_of_fold().score

    def ensemble(self, name: str, *runs: str, **options: Any) -> dict[str, Any]:
        """Return what `kbench ensemble` returns."""
        return ensemble(Choice(name, workspace=self.root), runs, EnsembleOptions(device="cpu", **options))

    def lineage(self, made: dict[str, Any]) -> dict[str, Any]:
        """Return the lineage beside a submission."""
        file = Path(made["file"])
        content: dict[str, Any] = json.loads(file.with_name(f"{file.stem}.lineage.json").read_text())["lineage"]
        return content


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A new workspace."""
    return Bench(tmp_path)


def tags_sample(bench: Bench) -> None:
    """Give the labels a sample of one column of tags."""
    ids = [f"{row:04d}" for row in range(TEST)]
    frame = pd.DataFrame({"id": ids, "tags": ["left"] * TEST})
    frame.to_csv(bench.root / "source" / "labels" / "sample_submission.csv", index=False)


# -- thresholds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_label", [False, True])
def test_a_threshold_is_found_scored_nested_kept_and_used_for_the_tags(bench: Bench, per_label: bool) -> None:
    tags_sample(bench)
    decision = f"{{name: threshold, per_label: {str(per_label).lower()}}}"
    bench.set("labels", f"ensemble: {{decision: {decision}}}", submission="{format: tags}")
    bench.add("labels", "theirs", noise=0.6, seed=1)
    score = bench.score("labels", "theirs")
    assert score["plain"]["value"] - score["score"] == pytest.approx(score["optimism"])
    assert set(score["decision"]["nested"]) == {"0", "1"}
    made = bench.ensemble("labels", "theirs")
    assert made["score"] == score["score"]
    kept = bench.lineage(made)
    assert kept["thresholds"]["found"] == score["decision"]["found"]
    assert kept["optimism"] == score["optimism"]
    assert kept["format"] == {"name": "tags"}
    found = kept["thresholds"]["found"]
    limits = list(found["thresholds"].values()) if per_label else found["threshold"]
    test = pd.read_csv(bench.root / "test.csv")[COLUMNS["labels"]].to_numpy(dtype=np.float32)
    tags = [" ".join(np.array(COLUMNS["labels"])[row]) for row in test > np.asarray(limits, dtype=np.float32)]
    assert pd.read_csv(made["file"], keep_default_na=False)["tags"].tolist() == tags


def test_without_a_decision_the_metrics_threshold_writes_the_tags(bench: Bench) -> None:
    tags_sample(bench)
    bench.set("labels", "", submission="{format: tags}")
    path = bench.root / "competitions" / "labels.yaml"
    path.write_text(path.read_text().replace("metric: f2_samples", "metric: {name: f2_samples, threshold: 0.8}"))
    bench.add("labels", "theirs", noise=0.6, seed=1)
    assert "plain" not in bench.score("labels", "theirs")
    made = bench.ensemble("labels", "theirs")
    test = pd.read_csv(bench.root / "test.csv")[COLUMNS["labels"]].to_numpy()
    tags = [" ".join(np.array(COLUMNS["labels"])[row]) for row in test > 0.8]
    assert pd.read_csv(made["file"], keep_default_na=False)["tags"].tolist() == tags


def test_a_decision_for_another_task_is_refused_when_the_yaml_is_read(bench: Bench) -> None:
    bench.set("classes", "ensemble: {decision: threshold}")
    with pytest.raises(ConfigError, match="not for the task 'single_label'"):
        open_experiment(Choice("classes", workspace=bench.root))


def test_a_grid_out_of_range_is_refused_before_anything_is_trained(bench: Bench) -> None:
    bench.set("labels", "ensemble: {decision: {name: threshold, low: 2.0}}")
    with pytest.raises(ConfigError, match=r"ensemble\.decision"):
        bench.add("labels", "theirs", noise=0.6, seed=1)


# -- grades ------------------------------------------------------------------------------------------------------


def test_grades_trained_as_numbers_are_cut_nested_and_written_whole(bench: Bench) -> None:
    bench.write("numbers", level=[str(row % 5) for row in range(ROWS)], width=[str(row % 3) for row in range(ROWS)])
    bench.set("numbers", "ensemble: {decision: cut_points}")
    path = bench.root / "competitions" / "numbers.yaml"
    path.write_text(path.read_text().replace("metric: rmse", "metric: quadratic_kappa"))
    bench.add("numbers", "theirs", noise=0.5, seed=1)
    score = bench.score("numbers", "theirs")
    assert score["plain"]["value"] >= score["score"]
    made = bench.ensemble("numbers", "theirs")
    frame = pd.read_csv(made["file"])
    assert frame["level"].dtype == np.int64
    assert set(frame["level"]) <= set(range(5))
    assert len(bench.lineage(made)["thresholds"]["found"]["cut_points"]["level"]) == 4


def test_numbers_go_end_to_end_as_they_are(bench: Bench) -> None:
    bench.add("numbers", "a", noise=0.5, seed=1)
    bench.add("numbers", "b", noise=0.5, seed=2)
    made = bench.ensemble("numbers", "a", "b", combine="weights")
    assert made["metric"] == "rmse"
    alone = [bench.score("numbers", run)["score"] for run in ("a", "b")]
    assert made["plain"]["value"] <= min(alone)
    frame = pd.read_csv(made["file"])
    tests = {}
    for run in ("a", "b"):
        values = np.load(bench.root / "runs" / "numbers" / run / "test" / "merged.npy")
        tests[run] = values
    expected = sum(made["weights"][run] * values for run, values in tests.items())
    np.testing.assert_allclose(frame[["level", "width"]].to_numpy(), expected, rtol=1e-4)


def test_a_clip_is_written_and_kept_with_the_file(bench: Bench) -> None:
    bench.set("classes", "", submission="{format: {name: probabilities, clip: 0.05}}")
    bench.add("classes", "theirs", noise=0.1, seed=1)
    made = bench.ensemble("classes", "theirs")
    frame = pd.read_csv(made["file"])
    assert frame[COLUMNS["classes"]].to_numpy().min() >= 0.05 - 1e-9
    assert bench.lineage(made)["format"] == {"name": "probabilities", "clip": 0.05}
    assert any("clipped to 0.05..0.95" in note for note in made["notes"])


# -- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["greedy", "weights"])
def test_members_are_weighed_scored_nested_and_sent_with_the_same_weights(bench: Bench, combine: str) -> None:
    for seed, noise in enumerate((0.5, 0.7, 3.0)):
        bench.add("classes", f"r{seed}", noise=noise, seed=seed)
    made = bench.ensemble("classes", "r0", "r1", "r2", combine=combine)
    assert sum(made["weights"].values()) == pytest.approx(1)
    assert made["weights"]["r2"] < made["weights"]["r0"]
    assert made["score"] - made["plain"]["value"] == pytest.approx(made["optimism"])
    assert made["low"] <= made["score"] <= made["high"]
    tests = {run: np.load(bench.root / "runs" / "classes" / run / "test" / "merged.npy") for run in made["weights"]}
    expected = sum(made["weights"][run] * values for run, values in tests.items())
    np.testing.assert_allclose(pd.read_csv(made["file"])[COLUMNS["classes"]].to_numpy(), expected, atol=1e-6)
    lineage = bench.lineage(made)
    assert lineage["combine"] == {"name": combine, "weights": made["weights"]}
    used = {member["run"]: weight for member, weight in zip(lineage["members"], lineage["weights"], strict=True)}
    assert used == pytest.approx({run: weight for run, weight in made["weights"].items() if weight})
    assert made["gains"][0]["member"] == max(made["weights"], key=made["weights"].get)


def test_greedy_is_never_worse_than_the_best_run_where_it_climbed(bench: Bench) -> None:
    for seed, noise in enumerate((2.0, 2.5, 3.0)):
        bench.add("classes", f"r{seed}", noise=noise, seed=seed)
    made = bench.ensemble("classes", "r0", "r1", "r2", combine="greedy")
    assert made["plain"]["value"] <= min(bench.score("classes", f"r{seed}")["score"] for seed in range(3)) + 1e-6


def test_ranks_of_members_on_any_scale(bench: Bench) -> None:
    path = bench.root / "competitions" / "classes.yaml"
    path.write_text(path.read_text().replace("metric: log_loss", "metric: auc"))
    bench.add("classes", "a", noise=1.0, seed=1)
    bench.add("classes", "b", noise=1.2, seed=2)
    made = bench.ensemble("classes", "a", "b", combine="rank")
    assert "plain" not in made
    right = pd.read_csv(made["file"])["right"].to_numpy()
    tests = [np.load(bench.root / "runs" / "classes" / run / "test" / "merged.npy")[:, 1] for run in ("a", "b")]
    expected = np.mean([(np.argsort(np.argsort(one)) + 0.5) / TEST for one in tests], axis=0)
    np.testing.assert_allclose(right, expected, atol=1e-6)


def test_pruning_leaves_out_what_is_inside_the_noise_only_if_asked(bench: Bench) -> None:
    for seed, noise in enumerate((0.4, 9.0)):
        bench.add("classes", f"r{seed}", noise=noise, seed=seed)
    assert bench.ensemble("classes", "r0", "r1")["members"] == 2
    made = bench.ensemble("classes", "r0", "r1", prune=True)
    assert made["weights"] == {"r0": 1.0, "r1": 0.0}
    assert made["members"] == 1
    bench.set("classes", "ensemble: {prune: true}")
    assert bench.ensemble("classes", "r0", "r1")["members"] == 1


def test_a_foreign_member_of_some_labels_counts_for_those(bench: Bench) -> None:
    bench.add("labels", "all", noise=0.6, seed=1)
    for part in ("oof", "test"):
        path = bench.root / f"{part}.csv"
        pd.read_csv(path, dtype={"id": str}).drop(columns="left").to_csv(path, index=False)
    files = {part: str(bench.root / f"{part}.csv") for part in ("oof", "test")}
    import_run(Choice("labels", workspace=bench.root), "some", **files, force=False)
    assert bench.score("labels", "some")["rows"] == ROWS
    made = bench.ensemble("labels", "all", "some", weights=(1.0, 3.0))
    tests = {run: np.load(bench.root / "runs" / "labels" / run / "test" / "merged.npy") for run in ("all", "some")}
    frame = pd.read_csv(made["file"])
    np.testing.assert_allclose(frame["left"], tests["all"][:, 1], atol=1e-6)
    np.testing.assert_allclose(frame["right"], tests["all"][:, 2] / 4 + tests["some"][:, 1] * 0.75, atol=1e-6)
    with pytest.raises(PredictionError, match="'some' predict only some"):
        bench.ensemble("labels", "all", "some", combine="weights")
    pd.read_csv(files["oof"], dtype={"id": str}).drop(columns="right").to_csv(files["oof"], index=False)
    with pytest.raises(PredictionError, match="different targets"):
        import_run(Choice("labels", workspace=bench.root), "other", **files, force=False)


def test_a_combiner_that_is_not_there_is_answered_with_one_that_is(bench: Bench) -> None:
    bench.add("classes", "a", noise=1.0, seed=1)
    with pytest.raises(ConfigError, match="greedy"):
        bench.ensemble("classes", "a", combine="gredy")


def test_a_geometric_mean_is_that_of_runs_too_and_of_maps(bench: Bench) -> None:
    bench.set("classes", "ensemble: {mean: geometric}")
    for seed in (1, 2):
        bench.add("classes", f"r{seed}", noise=0.6, seed=seed)
    made = bench.ensemble("classes", "r1", "r2", weights=(1.0, 3.0))
    tests = [np.load(bench.root / "runs" / "classes" / run / "test" / "merged.npy") for run in ("r1", "r2")]
    values = tests[0] ** 0.25 * tests[1] ** 0.75
    values /= values.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pd.read_csv(made["file"])[COLUMNS["classes"]].to_numpy(), values, atol=1e-5)
    maps = [one.T[:, :, None] for one in tests]

    def mean(kind: str) -> np.ndarray:
        how, total = mean_of_task(kind, "segmentation", 2, floor=1 / 510), None
        for share, one in zip((0.25, 0.75), maps, strict=True):
            total = how.add(total, one, share)
        return np.asarray(how.back(total, axis=0))

    both = mean("geometric")
    floored = [np.maximum(one, 1 / 510) for one in tests]  # kept maps have 8 bits
    values = floored[0] ** 0.25 * floored[1] ** 0.75
    np.testing.assert_allclose(both[:, :, 0].T, values / values.sum(axis=1, keepdims=True), atol=1e-5)
    plain = mean("arithmetic")
    np.testing.assert_allclose(plain[:, :, 0].T, 0.25 * tests[0] + 0.75 * tests[1], atol=1e-6)


@pytest.mark.parametrize("text", ["combine: rank", "decision: threshold"])
def test_what_maps_cannot_have_is_a_problem_of_the_yaml(bench: Bench, text: str) -> None:
    bench.set("numbers", f"ensemble: {{mean: geometric, {text}}}")
    path = bench.root / "competitions" / "numbers.yaml"
    path.write_text(path.read_text().replace("task: regression", "task: dense_regression"))
    with pytest.raises(ConfigError) as caught:
        open_experiment(Choice("numbers", workspace=bench.root))
    assert f"ensemble.{text.split(':')[0]}" in str(caught.value)


def test_a_run_on_folds_that_are_gone_joins_a_plain_mean_when_asked(bench: Bench) -> None:
    for seed in (1, 2):
        bench.add("classes", f"r{seed}", noise=0.6, seed=seed)
    manifest = bench.root / "runs" / "classes" / "r2" / "run.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "folds": "0" * 16}))
    with pytest.raises(ConfigError, match="--mixed-folds"):
        bench.ensemble("classes", "r1", "r2")
    made = bench.ensemble("classes", "r1", "r2", mixed_folds=True)
    assert (made["score"], made["members"]) == (None, 2)
    assert "mixed folds: a plain mean without a score" in made["notes"]


def test_runs_on_other_folds_join_a_plain_mean_and_nothing_that_is_fitted(bench: Bench) -> None:
    bench.add("labels", "a", noise=0.6, seed=1)
    bench.add("labels", "b", noise=0.6, seed=2)
    a, b = (open_run(Choice("labels", run=name, workspace=bench.root)) for name in "ab")
    b = replace(b, hashes={**b.trained_as, "folds": "other"})
    with pytest.raises(PredictionError, match="different folds"):
        blend([a, b], EnsembleOptions())
    assert blend([a, b], EnsembleOptions(mixed_folds=True)).score is None
    for options in ({"combine": "greedy"}, {"combine": "weights"}, {"prune": True}):
        with pytest.raises(PredictionError, match="cannot be found"):
            blend([a, b], EnsembleOptions(mixed_folds=True, **options))  # type: ignore[arg-type]


# -- trained members ---------------------------------------------------------------------------------------------


@pytest.fixture
def trained(small_workspace: Path, tmp_path: Path) -> Path:
    """A copy of the trained small workspace."""
    shutil.copytree(small_workspace, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def run_ensemble(root: Path, *runs: str, **options: Any) -> dict[str, Any]:
    return ensemble(Choice("classes", workspace=root), runs, EnsembleOptions(device="cpu", **options))


def test_the_score_has_the_table_of_the_planet_notebook(trained: Path) -> None:
    run = open_run(Choice("classes", workspace=trained))
    setup, paths = run.experiment, run.paths
    made = run.out_of_fold(device="cpu").score
    assert [list(row) for row in made["table"]] == [["fold", "rows", "all-0", "all-1", "mean"]] * 2
    assert [row["mean"] for row in made["table"]] == pytest.approx(list(made["folds"].values()))
    assert made["cv_mean"]["mean"] == pytest.approx(np.mean(list(made["folds"].values())))
    row, metric = made["table"][0], make_metric("log_loss")
    rows = setup.train.select(setup.folds.valid(0))
    values = np.load(paths.fold(0).predictions("oof", "all-1").with_suffix(".npy"))
    assert row["all-1"] == pytest.approx(metric(rows.targets, values, rows))


def test_the_table_of_a_decision_shows_what_each_fold_would_have_liked(trained: Path) -> None:
    path = trained / "competitions" / "labels.yaml"
    path.write_text(path.read_text() + "ensemble: {decision: threshold}\n")
    made = open_run(Choice("labels", workspace=trained)).out_of_fold(device="cpu").score
    (row,) = made["table"]
    assert list(row) == ["fold", "rows", "all-0", "all-1", "mean", "threshold", "at_best"]
    assert row["at_best"] >= row["mean"]
    assert row["mean"] == pytest.approx(made["score"])
    assert row["threshold"] == made["decision"]["found"]["threshold"]


def test_snapshots_of_runs_and_foreign_members_are_weighed_together(trained: Path) -> None:
    bench = Bench.__new__(Bench)
    bench.root = trained
    bench.add("classes", "theirs", noise=0.8, seed=3)
    made = run_ensemble(trained, "baseline-s0", "theirs", combine="weights", name="mix")
    assert set(made["weights"]) == {"baseline-s0/all-0", "baseline-s0/all-1", "theirs"}
    lineage = bench.lineage(made)
    for member, weight in zip(lineage["members"], lineage["weights"], strict=True):
        name = "theirs" if "foreign" in member else f"{member['run']}/{member['stage']}-{member['tag']}"
        assert weight == pytest.approx(made["weights"][name] / (1 if "foreign" in member else 2))


def test_only_snapshots_with_a_weight_are_predicted(trained: Path) -> None:
    for fold in range(2):
        shutil.rmtree(trained / "runs" / "classes" / "baseline-s0" / f"fold-{fold}" / "test", ignore_errors=True)
    path = trained / "competitions" / "classes.yaml"
    path.write_text(path.read_text() + "ensemble: {combine: {name: greedy, draws: 0}}\n")
    made = run_ensemble(trained)
    assert made["members"] == 2
    (kept,) = [name for name, weight in made["weights"].items() if weight]
    found = {path.stem for path in (trained / "runs" / "classes" / "baseline-s0").glob("fold-*/test/*.json")}
    assert found == {kept.split("/")[1]}


def test_all_rows_have_the_weights_found_on_the_folds(trained: Path) -> None:
    train(open_experiment(Choice("classes", workspace=trained)), "full", TrainOptions(device="cpu"))
    made = run_ensemble(trained, full=True, combine="weights")
    used = {name for name, weight in made["weights"].items() if weight}
    assert made["members"] == len(used)
    assert any("not what was scored" in note for note in made["notes"])
    assert made["score"] is not None


def test_the_command_shows_the_table_the_gains_and_both_scores(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.set("labels", "ensemble: {decision: threshold}")
    for seed in (1, 2):
        bench.add("labels", f"r{seed}", noise=0.6, seed=seed)
    monkeypatch.chdir(bench.root)
    for words in (["score", "--run", "r1"], ["ensemble", "r1", "r2", "--combine", "greedy", "--prune"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([*words, "-c", "labels"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "nested: each fold with what was found on the others" in shown.replace("\n", " ")
        assert "optimism" in shown
        assert "found: threshold" in shown
    assert "what each member adds" in shown


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, -1.0), (0.0, 0.0), (1.0, float("nan"))])
def test_weights_that_do_not_fit_the_runs_are_refused_before_anything_is_predicted(
    bench: Bench, weights: tuple[float, ...]
) -> None:
    for number, run in enumerate(("r1", "r2")):
        bench.add("classes", run, noise=1.0, seed=number)
    with pytest.raises(ConfigError, match="for 2 runs"):
        bench.ensemble("classes", "r1", "r2", weights=weights)


def test_rows_of_a_moment_are_drawn_together(bench: Bench) -> None:
    """Frames of `blocks` within the gap of one another are one group of the interval, whatever rows are scored."""
    assignments = ("folds.strategy=blocks", "folds.options={order: id, gap: 3}")
    setup = open_experiment(Choice("classes", assignments=assignments, workspace=bench.root))
    groups = setup.groups(setup.train)
    assert groups is not None
    assert 1 < len(set(groups.tolist())) < len(setup.train)
    some = setup.train.select(np.arange(0, len(setup.train), 5))
    assert np.array_equal(setup.groups(some), groups[::5])


def test_a_run_named_twice_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'a' named more than once") as caught:
        ensemble(Choice("classes", workspace=tmp_path), ["a", "b", "a"], EnsembleOptions())
    assert "`kbench ensemble a b --weight" in caught.value.todo
