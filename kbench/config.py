"""A competition's YAML as a frozen, checked object.

The upper half of the file is the contract (source, data, folds, metric, submission); the lower half is the
baseline experiment (input, model, augmentation, stages, views, ensemble). An experiment is a second YAML that
says only what differs. Values that change weights are hashed by `training_hash`, the contract by
`contract_hash`; the rest may change without retraining.

To add a setting, add a field to the section it belongs to; if it does not change weights, leave it out of
`Competition.training_view`. Nothing below `commands/` receives these objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kbench import registry
from kbench.errors import Problem
from kbench.files import digest, sha256

Task = Literal["single_label", "multi_label", "regression", "segmentation", "dense_regression"]


class Section(BaseModel):
    """A part of the YAML: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Component(BaseModel):
    """A registered part and its parameters: `flip`, or `{name: random, n: 4}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """The parameters written in the YAML."""
        return dict(self.model_extra or {})


def _component(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Part = Annotated[Component, BeforeValidator(_component)]


class Split(Section):
    """Where the rows of the training or the test set are.

    Paths are relative to the competition's data folder.
    """

    csv: str | None = Field(None, description="table of ids (and targets); none for folders alone")
    images: str | list[str] | None = Field(
        None, description="image folder, or several folders whose channels are stacked"
    )
    suffix: str | None = Field(None, description="file ending of the images, such as .jpg; empty if ids carry it")
    id: str | None = Field(None, description="id column; the first one by default")
    where: dict[str, str | list[str]] = Field(default_factory=dict, description="keep rows whose column has this value")


class Data(Section):
    """What the rows are and what is to be predicted."""

    layout: Part = Component(name="csv")
    train: Split = Split()
    test: Split | None = None
    target: str | list[str] | None = Field(None, description="target column(s); the second column by default")
    classes: list[str] | None = Field(
        None, description="class names in the order of the outputs; sorted labels by default"
    )
    metadata: list[str] = Field(default_factory=list, description="columns kept for folds, groups and reports")
    on_problem: Literal["error", "drop"] = Field("error", description="rows with a missing or unreadable image")


class FoldSection(Section):
    """How rows are cut into folds."""

    strategy: str = "stratified"
    n: int = Field(5, ge=1)
    seed: int = 42
    by: list[str] = Field(
        default_factory=list, description="columns whose combinations are balanced; the target by default"
    )
    group: str | None = Field(None, description="column whose values never fall into two folds")
    options: dict[str, Any] = Field(default_factory=dict, description="further parameters of the strategy")


class SubmissionSection(Section):
    """What the submission file looks like."""

    format: Part = Component(name="probabilities")
    sample: str = Field("sample_submission.csv", description="path in the data folder")
    gzip: bool = False


class Input(Section):
    """What the network sees."""

    reader: Part = Component(name="image")
    size: int | tuple[int, int] = Field(224, description="side in pixels, or [height, width]")
    channels: int = Field(3, ge=1)
    crop: Literal["centre", "squash"] = Field("centre", description="how an image of another shape becomes the size")
    mean: list[float] | None = Field(
        None, description="per channel, of values scaled by 1/255 if 8 bit; ImageNet's for 3 channels"
    )
    std: list[float] | None = None
    cache: Literal["auto", "on", "off"] = "auto"


class ModelSection(Section):
    """The network."""

    name: str = "timm"
    backbone: str = "resnet18"
    pretrained: bool = False
    weights: str | None = Field(None, description="a weights file, relative to the workspace")
    options: dict[str, Any] = Field(default_factory=dict, description="further parameters of the model")


class Stage(Section):
    """One stage of training. What a stage leaves out is taken from `train:`."""

    schedule: Part = Component(name="sgdr")
    lr: float | list[float] | Literal["find"] = "find"
    lr_from_fold: int | None = Field(None, description="with `lr: find`: take the rate this fold found")
    lr_decay: float = Field(1.0, ge=1, description="each earlier layer group learns this many times slower")
    weight_decay: float | list[float] = 0.0
    optimizer: Part = Component(name="adamw")
    groups: Literal["all", "head"] | list[int] = Field(
        "all", description="layer groups that train; the others are frozen"
    )
    size: int | tuple[int, int] | None = Field(None, description="image size of this stage; `input.size` by default")
    batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1, description="batches per update")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")
    loss: Part | None = Field(None, description="by default the task's: cross_entropy, bce or l1")
    augment: Part = Component(name="none")
    crop: Part = Component(name="random")
    mix: Part | None = None
    sampler: Part = Component(name="shuffle")
    step: Part = Component(name="supervised")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    ema: float | None = Field(None, gt=0, lt=1)
    early_stop: int | None = Field(None, ge=1, description="epochs without a better score before the stage stops")
    min_delta: float = Field(0.0, ge=0, description="how much better counts as better")
    monitor: str | None = Field(None, description="what `best` means: `loss` or a metric; the competition's by default")
    keep: list[Literal["cycles", "best", "last"]] = Field(
        default_factory=list, description="which states become ensemble members"
    )
    subset: Literal["fold", "full"] = "fold"
    start: str = Field("previous", description="`previous` stage, `fresh`, or a stage's name")


class EnsembleSection(Section):
    """How members become one prediction."""

    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    members: list[str] | None = Field(
        None, description="stages or `stage-cycle` whose snapshots count; all kept ones by default"
    )


class Loader(Section):
    """How batches are made ready; none of it changes a result."""

    workers: int | Literal["auto"] = "auto"
    valid_batch_size: int | None = None
    checkpoint_minutes: float = Field(5.0, gt=0, description="resume points inside long epochs")


class Competition(Section):
    """One experiment on one competition: the whole YAML."""

    title: str = ""
    task: Task
    source: Part = Component(name="local")
    data: Data = Data()
    folds: FoldSection = FoldSection()
    metric: Part
    submission: SubmissionSection = SubmissionSection()
    plugins: list[str] = Field(default_factory=list, description="Python files beside the YAML")
    seed: int = 0
    input: Input = Input()
    model: ModelSection = ModelSection()
    stages: dict[str, Stage] = Field(min_length=1)
    tta: Part = Component(name="none")
    ensemble: EnsembleSection = EnsembleSection()
    loader: Loader = Loader()
    name: str = Field("", exclude=True, description="set from the file's name")
    experiment: str = Field("baseline", exclude=True, description="set from the experiment's name")

    @model_validator(mode="after")
    def _order_of_stages(self) -> Competition:
        done: list[str] = []
        for name, stage in self.stages.items():
            if stage.start not in ("previous", "fresh", *done):
                raise ValueError(f"stages.{name}.start: '{stage.start}' is no earlier stage")
            done.append(name)
        full = [stage.subset == "full" for stage in self.stages.values()]
        if full != sorted(full):
            raise ValueError("stages: a stage with `subset: full` may only be followed by such stages")
        return self

    def contract_view(self) -> dict[str, Any]:
        """Return what makes targets and folds what they are."""
        return {
            "task": self.task,
            "data": self.data.model_dump(mode="json"),
            "folds": self.folds.model_dump(mode="json"),
        }

    def training_view(self) -> dict[str, Any]:
        """Return everything of the YAML that changes weights."""
        selects = any(
            stage.early_stop or "best" in stage.keep or stage.schedule.name == "plateau"
            for stage in self.stages.values()
        )
        return {
            "contract": self.contract_view(),
            "seed": self.seed,
            "input": self.input.model_dump(mode="json", exclude={"cache"}),
            "model": self.model.model_dump(mode="json"),
            "stages": [[name, stage.model_dump(mode="json")] for name, stage in self.stages.items()],
            "monitored": self.metric.model_dump(mode="json") if selects else None,
        }

    def hashes(self, *, plugins: list[Path], weights: Path | None) -> dict[str, str]:
        """Return `contract` and `training`, 16 hexadecimal digits each.

        Args:
            plugins: the plug-in files.
            weights: the file of `model.weights`, whose content counts.
        """
        view = self.training_view()
        view["plugins"] = [sha256(path) for path in plugins]
        view["weights"] = sha256(weights) if weights else None
        return {"contract": digest(self.contract_view()), "training": digest(view)}


def bind(competition: Competition) -> list[Problem]:
    """Hold every registered name and its parameters against the function's signature; return all problems."""
    folds = competition.folds
    components: list[tuple[str, str, str, dict[str, Any]]] = [
        ("source", "source", competition.source.name, competition.source.params),
        ("layout", "data.layout", competition.data.layout.name, competition.data.layout.params),
        ("fold strategy", "folds", folds.strategy, folds.options),
        ("metric", "metric", competition.metric.name, competition.metric.params),
        ("format", "submission.format", competition.submission.format.name, competition.submission.format.params),
        ("reader", "input.reader", competition.input.reader.name, competition.input.reader.params),
        ("model", "model", competition.model.name, competition.model.options),
        ("views", "tta", competition.tta.name, competition.tta.params),
    ]
    kinds = {"schedule": "schedule", "optimizer": "optimizer", "loss": "loss", "augment": "augmentation",
             "crop": "crop", "mix": "mix", "sampler": "sampler", "step": "step"}  # fmt: skip
    for name, stage in competition.stages.items():
        for key, kind in kinds.items():
            part = getattr(stage, key)
            if part is not None:
                components.append((kind, f"stages.{name}.{key}", part.name, part.params))
        if stage.monitor and stage.monitor != "loss":
            components.append(("metric", f"stages.{name}.monitor", stage.monitor, {}))
    return [
        problem
        for kind, where, name, params in components
        for problem in registry.bind(kind, name, params, where=where)
    ]
