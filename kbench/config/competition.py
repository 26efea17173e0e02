"""A competition's YAML as a frozen, checked object.

The upper half of the file is the contract (source, data, folds, metric, submission); the lower half is the
baseline experiment (input, model, augmentation, stages, views, ensemble). An experiment is a second YAML that
says only what differs. Values that change weights are hashed by `training_hash`, the contract by
`contract_hash`; the rest may change without retraining.

To add a setting, add a field to the section it belongs to, one of a stage in `stage.py`; if it does not change
weights, leave it out of `Competition.training_view`. Below `runs/` only a stage of training is known, as `Stage`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from kbench.config.bands import Align, Bands, DateName, FileName, Missing, Normalising, fields_of
from kbench.config.section import LATER, UNFIT, Component, Finite, Kind, Positive, Section, Size, Surroundings
from kbench.config.stage import Stage
from kbench.files import digest, sha256

Task = Literal[
    "single_label", "multi_label", "regression", "segmentation", "multi_label_segmentation", "dense_regression"
]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
PluginFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.py$", max_length=100)]

SCHEMA = 2
"""Raised where the same settings train otherwise, or are hashed otherwise, than before: runs of before end there."""


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

    layout: Annotated[Component, Kind("layout")] = Field(
        Component(name="csv"), description="how files become rows; `kbench list layout`"
    )
    train: Split = Field(Split(), description="the labelled rows")
    test: Split | None = Field(None, description="the rows to predict")
    target: str | list[str] | None = Field(None, description="target column(s); the second column by default")
    classes: list[str] | None = Field(
        None, description="class names in the order of the outputs; sorted labels by default"
    )
    masks: Annotated[Component | None, Kind("mask")] = Field(
        None, description="how the targets of dense tasks are written; `kbench list mask`"
    )
    metadata: list[str] = Field(default_factory=list, description="columns kept for folds, groups and reports")
    on_problem: Literal["error", "drop", "fill"] = Field(
        "error",
        description="training rows with a missing or unreadable image or a wrong target are an error, or left out; "
        "such test rows get the training rows' share (of dense tasks `drop` leaves them out)",
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
    options: Annotated[dict[str, Any], Kind("fold strategy", named_by="strategy")] = Field(
        default_factory=dict, description="further parameters of the strategy"
    )


class SubmissionSection(Section):
    """What the submission file looks like."""

    format: Annotated[Component, Kind("format")] = Field(
        Component(name="probabilities"), description="see `kbench list format`"
    )
    sample: str = Field("sample_submission.csv", description="path in the data folder")
    gzip: bool = Field(False, description="compress the file")


class Input(Section):
    """What the network sees."""

    reader: Annotated[Component, Kind("reader")] = Field(
        Component(name="image"), description="how a file becomes an array; `kbench list reader`"
    )
    size: Size = Field(224, description="side in pixels, or [height, width]")
    channels: int = Field(3, ge=1, le=10_000, description="1 is grey, 3 is RGB, more are what the files hold")
    crop: Literal["centre", "squash"] = Field("centre", description="how an image of another shape becomes the size")
    mean: list[Finite] | None = Field(
        None, description="per channel, of values scaled by 1/255 if 8 bit; ImageNet's for 3 channels"
    )
    std: list[Positive] | None = Field(None, description="per channel, like mean")
    cache: Literal["auto", "on", "off"] = Field("auto", description="keep decoded images in one memory-mapped array")
    orientation: Literal["apply", "ignore"] = Field(
        "apply", description="turn images and masks as their files say (EXIF, TIFF tag 274), or take them as stored"
    )
    decode: Literal["auto", "exact"] = Field(
        "exact", description="decode and resize every pixel, or photographs as quickly as their size on screen allows"
    )
    max_pixels: int = Field(1 << 30, ge=1, description="height x width of the largest image or mask that is decoded")
    files: Annotated[dict[FileName, str], LATER] = Field(
        {}, description="the files of an image, by names of their own: below `images`, with `{id}` and `{date}`"
    )
    dates: Annotated[list[DateName], LATER] = Field([], description="what `{date}` stands for, in order")
    missing: Annotated[Missing, LATER] = Field(
        "error", description="a file of a row that is not there is an error, drops the row, or is masked"
    )
    bands: Annotated[dict[FileName, Bands], LATER] = Field({}, description="what the bands of each file are")
    align: Annotated[Align | None, LATER] = Field(
        None, description="move files that lie some pixels off one another, such as sensors of one satellite"
    )
    derive: Annotated[list[Component], LATER, Kind("index")] = Field(
        [], description="channels made of bands: `kbench list index`"
    )
    normalise: Annotated[Normalising, LATER] = Field(
        Normalising(), description="what the values of a channel are brought to, where nothing else says it"
    )

    @model_validator(mode="after")
    def _counted(self, info: ValidationInfo) -> Self:
        """Let `channels` be what files, dates and bands make, where the YAML names files."""
        count = self._count()
        written = "channels" in self.model_fields_set and self.channels != count
        if count and written and isinstance(info.context, Surroundings):
            what = f"is {self.channels}, and files, dates and bands make {count}"
            said = {"where": "input.channels", "what": what, "hint": "remove it: it is counted"}
            raise PydanticCustomError(UNFIT, "{what}", said)
        if count:
            self.__dict__["channels"] = count
        return self

    @property
    def dated(self) -> list[str]:
        """The files there is one of for each date."""
        return [name for name, pattern in self.files.items() if "date" in fields_of(pattern)]

    def band_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the bands of each file of `files`."""
        return {name: self.bands[name].band_names() if name in self.bands else () for name in self.files}

    def _count(self) -> int:
        counts = {name: len(bands) for name, bands in self.band_names().items()}
        derived = len(self.derive) * (len(self.dates) if self.dated else 1) if counts else 0
        return sum(count * (len(self.dates) if name in self.dated else 1) for name, count in counts.items()) + derived


class ModelSection(Section):
    """The network."""

    name: str = Field("timm", description="see `kbench list model`")
    backbone: str = Field("resnet18", description="a name of `timm.list_models()`")
    pretrained: bool = Field(False, description="begin with timm's weights")
    weights: str | None = Field(None, description="a weights file, relative to the workspace")
    options: Annotated[dict[str, Any], Kind("model", named_by="name")] = Field(
        default_factory=dict, description="further parameters of the model"
    )
    standardise: bool = Field(
        True,
        description="regression: learn targets in standard deviations from the mean of the training rows; scores, "
        "predictions and files are in their own units",
    )


class EnsembleSection(Section):
    """How members become one prediction."""

    mean: Literal["arithmetic", "geometric"] = Field("arithmetic", description="over views, snapshots, folds and runs")
    members: list[str] | None = Field(None, description="stages or `stage-cycle` that count; all kept ones by default")
    combine: Annotated[Component, Kind("combiner")] = Field(
        Component(name="mean"), description="how members are weighed; `kbench list combiner`"
    )
    prune: bool = Field(False, description="leave out members whose gain is inside the noise")
    decision: Annotated[Component | None, Kind("decision")] = Field(
        None, description="thresholds or cut points to find; `kbench list decision`"
    )


class Maps(Section):
    """How dense tasks predict whole images. None of it changes weights."""

    windows: Annotated[Component, Kind("windows")] = Field(
        Component(name="full"), description="what the network sees at once"
    )
    postprocess: Annotated[Component, Kind("postprocess")] = Field(
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
    source: Annotated[Component, Kind("source")] = Field(
        Component(name="local"), description="where the files come from; `kbench list source`"
    )
    data: Data = Field(Data(), description="what the rows are")
    folds: FoldSection = Field(FoldSection(), description="how rows are cut into folds")
    metric: Annotated[Component, Kind("metric")] = Field(description="the competition's score; `kbench list metric`")
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
    tta: Annotated[Component, Kind("views")] = Field(
        Component(name="none"), description="views of an image that are averaged; `kbench list views`"
    )
    ensemble: EnsembleSection = Field(EnsembleSection(), description="how members become one prediction")
    maps: Maps = Field(Maps(), description="how dense tasks predict whole images")
    loader: Loader = Field(Loader(), description="how batches are made ready")
    name: str = Field("", exclude=True, description="set from the file's name")
    experiment: str = Field("baseline", exclude=True, description="set from the experiment's name")

    def contract_view(self) -> dict[str, Any]:
        """Return what makes targets and folds what they are."""
        data = self.data.view()
        del data["on_problem"]  # which rows are there is in the table's fingerprint
        return {
            "task": self.task,
            "data": data,
            "folds": self.folds.view(),
        }

    def training_view(self) -> dict[str, Any]:
        """Return everything of the YAML that changes weights."""
        selects = any(
            stage.early_stop or "best" in stage.keep or stage.schedule.name == "plateau"
            for stage in self.stages.values()
        )
        return {
            "schema": SCHEMA,
            "contract": self.contract_view(),
            "seed": self.seed,
            "input": {key: value for key, value in self.input.view().items() if key not in ("cache", "max_pixels")},
            "model": self.model.view(),
            "stages": [[name, stage.view()] for name, stage in self.stages.items()],
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
