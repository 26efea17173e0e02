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

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kbench.files import digest, sha256

Task = Literal[
    "single_label", "multi_label", "regression", "segmentation", "multi_label_segmentation", "dense_regression"
]
Pixels = Annotated[int, Field(ge=1, le=32_000)]
Size = Pixels | tuple[Pixels, Pixels]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e30)]  # finite in float32
Decay = Annotated[float, Field(ge=0, le=1e30)]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
PluginFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.py$", max_length=100)]


class Section(BaseModel):
    """A part of the YAML: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Component(BaseModel):
    """A registered part and its parameters: `flip`, or `{name: random, n: 4}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """The parameters written in the YAML."""
        return dict(self.model_extra or {})


def as_component(value: Any) -> Any:
    """Return the long form of a component: `flip` is `{name: flip}`."""
    return {"name": value} if isinstance(value, str) else value


Part = Annotated[Component, BeforeValidator(as_component)]


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

    layout: Part = Field(Component(name="csv"), description="how files become rows; `kbench list layout`")
    train: Split = Field(Split(), description="the labelled rows")
    test: Split | None = Field(None, description="the rows to predict")
    target: str | list[str] | None = Field(None, description="target column(s); the second column by default")
    classes: list[str] | None = Field(
        None, description="class names in the order of the outputs; sorted labels by default"
    )
    masks: Part | None = Field(None, description="how the targets of dense tasks are written; `kbench list mask`")
    metadata: list[str] = Field(default_factory=list, description="columns kept for folds, groups and reports")
    on_problem: Literal["error", "drop", "fill"] = Field(
        "error",
        description="rows with a missing or unreadable image: an error, left out, or left out of training and kept in "
        "the test set, where they get the training share",
    )


class FoldSection(Section):
    """How rows are cut into folds."""

    strategy: str = Field("stratified", description="see `kbench list fold-strategy`")
    n: int = Field(5, ge=1, description="how many folds")
    seed: int = Field(42, ge=0, lt=2**32, description="of the cut alone; the recipe has its own")
    by: list[str] = Field(
        default_factory=list,
        description="columns whose combinations are balanced (`coverage`: of a mask); the target by default",
    )
    group: str | None = Field(None, description="column whose values stay in one fold; `auto`: near-duplicate images")
    options: dict[str, Any] = Field(default_factory=dict, description="further parameters of the strategy")


class SubmissionSection(Section):
    """What the submission file looks like."""

    format: Part = Field(Component(name="probabilities"), description="see `kbench list format`")
    sample: str = Field("sample_submission.csv", description="path in the data folder")
    gzip: bool = Field(False, description="compress the file")


class Input(Section):
    """What the network sees."""

    reader: Part = Field(Component(name="image"), description="how a file becomes an array; `kbench list reader`")
    size: Size = Field(224, description="side in pixels, or [height, width]")
    channels: int = Field(3, ge=1, le=10_000, description="1 is grey, 3 is RGB, more are what the files hold")
    crop: Literal["centre", "squash"] = Field("centre", description="how an image of another shape becomes the size")
    mean: list[Finite] | None = Field(
        None, description="per channel, of values scaled by 1/255 if 8 bit; ImageNet's for 3 channels"
    )
    std: list[Positive] | None = Field(None, description="per channel, like mean")
    cache: Literal["auto", "on", "off"] = Field("auto", description="keep decoded images in one memory-mapped array")


class ModelSection(Section):
    """The network."""

    name: str = Field("timm", description="see `kbench list model`")
    backbone: str = Field("resnet18", description="a name of `timm.list_models()`")
    pretrained: bool = Field(False, description="begin with timm's weights")
    weights: str | None = Field(None, description="a weights file, relative to the workspace")
    options: dict[str, Any] = Field(default_factory=dict, description="further parameters of the model")


class RangeTest(Section):
    """The learning-rate range test of a stage with `lr: find`."""

    steps: int = Field(100, ge=16, description="updates; fewer where the loss diverges before")
    start: Rate = Field(1e-5, description="first rate of the last layer group")
    end: Rate = Field(10.0, description="last rate")
    linear: bool = Field(False, description="raise the rate by equal steps instead of equal factors")
    valid: bool = Field(False, description="judge a batch of held-out rows after each update; its loss is what counts")
    stop: bool = Field(True, description="end the test where the loss diverges")


class Average(Section):
    """The mean of weights a stage with `keep: [average]` leaves, batch norm refitted to it."""

    of: Literal["epochs", "cycles"] = Field("cycles", description="at whose ends weights are taken")
    start: int = Field(1, ge=1, description="the first epoch or cycle that counts, from 1")


class Stage(Section):
    """One stage of training. What a stage leaves out is taken from `train:`."""

    schedule: Part = Field(Component(name="sgdr"), description="how the rate changes; `kbench list schedule`")
    lr: Rate | Annotated[list[Decay], Field(min_length=1)] | Literal["find"] = Field(
        "find", description="highest rate of the head, one per layer group, or found by a range test"
    )
    range_test: RangeTest = Field(RangeTest(), description="how `lr: find` looks for the rate")
    lr_from_fold: int | None = Field(None, ge=0, description="with `lr: find`: take the rate this fold found")
    lr_from_stage: str | None = Field(None, description="with `lr: find`: take the rate this earlier stage found")
    lr_decay: Finite = Field(1.0, ge=1, description="each earlier layer group learns this many times slower")
    weight_decay: Decay | Annotated[list[Decay], Field(min_length=1)] = Field(
        0.0, description="for all layer groups, or one per group"
    )
    normalise_decay: bool = Field(False, description="divide the weight decay by the root of the cycle's updates")
    optimizer: Part = Field(Component(name="adamw"), description="see `kbench list optimizer`")
    groups: Literal["all", "head"] | Annotated[list[int], Field(min_length=1)] = Field(
        "all", description="layer groups that train; the others are frozen"
    )
    precompute: bool = Field(
        False, description="run the frozen body once over all rows and train the head on what it said"
    )
    draws: int = Field(1, ge=1, description="augmented draws of each image that `precompute` runs the body over")
    size: Size | None = Field(None, description="image size of this stage; `input.size` by default")
    batch_size: int = Field(64, ge=1, description="images per batch")
    accumulate: int = Field(1, ge=1, description="batches per update")
    clip: Positive | None = Field(None, description="largest gradient norm")
    loss: Part | None = Field(None, description="by default the task's: cross_entropy, bce or mse")
    augment: Part = Field(Component(name="none"), description="see `kbench list augmentation`")
    crop: Part = Field(Component(name="random"), description="which window of a training image; `kbench list crop`")
    mix: Part | None = Field(None, description="mixup or cutmix of a batch")
    sampler: Part = Field(Component(name="shuffle"), description="which rows an epoch visits; `kbench list sampler`")
    step: Part = Field(Component(name="supervised"), description="what one update computes; `kbench list step`")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="what the hardware can, or this one")
    channels_last: Literal["auto"] | bool = Field("auto", description="memory format of the images")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights, which is kept")
    early_stop: int | None = Field(None, ge=1, description="epochs without a better score before the stage stops")
    min_delta: Finite = Field(0.0, ge=0, description="how much better counts as better")
    monitor: str | None = Field(None, description="what `best` means: `loss` or a metric; the competition's by default")
    keep: list[Literal["cycles", "best", "last", "average"]] = Field(
        default_factory=list, description="which states become ensemble members"
    )
    average: Average = Field(Average(), description="what `keep: [average]` is the mean of")
    subset: Literal["fold", "full"] = Field("fold", description="rows that train: the fold's, or all of them")
    start: str = Field("previous", description="`previous` stage, `fresh`, or a stage's name")

    def training_view(self) -> dict[str, Any]:
        """Return what changes weights; settings that came later only where they are used, so that older runs go on."""
        view = self.model_dump(mode="json")
        for key in ("valid", "stop"):
            if getattr(self.range_test, key) == RangeTest.model_fields[key].default:
                del view["range_test"][key]
        if self.draws == 1:
            del view["draws"]
        return view


class EnsembleSection(Section):
    """How members become one prediction."""

    mean: Literal["arithmetic", "geometric"] = Field("arithmetic", description="over views, snapshots, folds and runs")
    members: list[str] | None = Field(None, description="stages or `stage-cycle` that count; all kept ones by default")
    combine: Part = Field(Component(name="mean"), description="how members are weighed; `kbench list combiner`")
    prune: bool = Field(False, description="leave out members whose gain is inside the noise")
    decision: Part | None = Field(None, description="thresholds or cut points to find; `kbench list decision`")


class Maps(Section):
    """How dense tasks predict whole images. None of it changes weights."""

    windows: Part = Field(Component(name="full"), description="what the network sees at once")
    postprocess: Part = Field(
        Component(name="none"), description="from probabilities to masks; `kbench list postprocess`"
    )
    keep: Literal["auto", "on", "off"] = Field(
        "auto",
        description="keep probability maps as 8 bits; `auto`: where they need less than a tenth of the free disk",
    )


class Loader(Section):
    """How batches are made ready; none of it changes a result."""

    workers: Annotated[int, Field(ge=0, le=1000)] | Literal["auto"] = Field("auto", description="loader processes")
    valid_batch_size: int | None = Field(None, ge=1, description="images per batch when judging and predicting")
    checkpoint_minutes: float = Field(5.0, gt=0, description="resume points inside long epochs")


class Competition(Section):
    """One experiment on one competition: the whole YAML."""

    title: str = Field("", description="for people")
    task: Task = Field(description="what is to be predicted")
    source: Part = Field(Component(name="local"), description="where the files come from; `kbench list source`")
    data: Data = Field(Data(), description="what the rows are")
    folds: FoldSection = Field(FoldSection(), description="how rows are cut into folds")
    metric: Part = Field(description="the competition's score; `kbench list metric`")
    submission: SubmissionSection = Field(SubmissionSection(), description="what the submission file looks like")
    plugins: list[PluginFile] = Field(default_factory=list, description="Python files in the competition's own folder")
    seed: int = Field(0, ge=0, description="of everything random in training")
    input: Input = Field(Input(), description="what the network sees")
    model: ModelSection = Field(ModelSection(), description="the network")
    stages: dict[StageName, Stage] = Field(min_length=1, description="the recipe, in order")
    pseudo: str | None = Field(
        None, pattern=r"^[^/]+(/[^/]+)?$",
        description="pseudo-labels to train with: RUN, or RUN/NAME, of `kbench pseudo-label`",
    )  # fmt: skip
    tta: Part = Field(Component(name="none"), description="views of an image that are averaged; `kbench list views`")
    ensemble: EnsembleSection = Field(EnsembleSection(), description="how members become one prediction")
    maps: Maps = Field(Maps(), description="how dense tasks predict whole images")
    loader: Loader = Field(Loader(), description="how batches are made ready")
    name: str = Field("", exclude=True, description="set from the file's name")
    experiment: str = Field("baseline", exclude=True, description="set from the experiment's name")

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
            "stages": [[name, stage.training_view()] for name, stage in self.stages.items()],
            "monitored": self.metric.model_dump(mode="json") if selects else None,
            "windows": self.maps.windows.model_dump(mode="json") if selects else None,
        }

    def hashes(self, *, plugins: list[Path], weights: Path | None, pseudo: Path | None = None) -> dict[str, str]:
        """Return `contract` and `training`, 16 hexadecimal digits each.

        Args:
            plugins: the plug-in files.
            weights: the file of `model.weights`, whose content counts.
            pseudo: the JSON of the pseudo-labels, which holds the checksums of their files.
        """
        view = self.training_view()
        if pseudo is not None:
            view["pseudo"] = sha256(pseudo)
        view["plugins"] = [sha256(path) for path in plugins]
        view["weights"] = sha256(weights) if weights else None
        return {"contract": digest(self.contract_view()), "training": digest(view)}
