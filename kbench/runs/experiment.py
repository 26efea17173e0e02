"""What every command begins with: the workspace, the competition, its tables and its folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kbench import console, files, registry
from kbench.config.competition import Competition, FoldSection
from kbench.config.reading import load_competition
from kbench.data.folds.copies import contradictions, leaked, same_files, same_pixels, unknown_groups
from kbench.data.folds.files import read_folds, write_folds
from kbench.data.folds.folds import Cut, Folds, make_folds
from kbench.data.folds.near_duplicates import Prints, clusters, copies, hash_images, leaks, links
from kbench.data.folds.video_blocks import moments
from kbench.data.images.cache import memoised
from kbench.data.images.decoding import first_path, path_of
from kbench.data.images.georeference import Georeference, read_georeference
from kbench.data.images.readers import Reader, size_by
from kbench.data.masks.cache import coverage, look_at_masks, sizes_of
from kbench.data.table.content import Content
from kbench.data.table.csv_files import read_frame
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import MaskKind, Request, is_filled, marked, without
from kbench.data.table.table import Table, readable, training_share
from kbench.data.table.verify import Opening, look, look_at_images, stand_in_size
from kbench.errors import ConfigError, DataError, SourceError, counted, first_names
from kbench.machine import cores
from kbench.runs.steps import decoding_of, reader_of
from kbench.submission.check import read_sample
from kbench.submission.formats.base import Format
from kbench.workspace import Choice, Workspace, choose, find_workspace

PSEUDO = "first"
"""Name of pseudo-labels that were given none."""

Size = tuple[int, int]
AUTO = "auto"  # `folds.group` that clusters near-duplicates
WHY = "with an unreadable image"
COVERAGE = "coverage"  # of `folds.by`: how much the one class of a mask covers


@dataclass
class Experiment:
    """A competition's experiment in its workspace, with what is made from it on demand.

    Attributes:
        workspace: where everything lies.
        competition: the validated YAML.
        choice: what the user chose.
        plugins: folder of the plug-ins.
        trial: of a smoke run: folds that are not there yet are cut without a look at images, and not written.
        share: [K] what is said of a test row without a readable image; the training rows' share by default.
    """

    workspace: Workspace
    competition: Competition
    choice: Choice
    plugins: Path
    trial: bool = False
    share: np.ndarray | None = field(default=None, repr=False)
    _train: Table | None = field(default=None, repr=False)
    _test: Table | None = field(default=None, repr=False)
    _folds: Folds | None = field(default=None, repr=False)
    _sizes: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def data(self) -> Path:
        """The competition's data folder."""
        return self.workspace.data(self.competition.name)

    @cached_property
    def train(self) -> Table:
        """The training table."""
        return self.table("train") if self._train is None else self._train

    @cached_property
    def test(self) -> Table:
        """The test table."""
        return self.table("test") if self._test is None else self._test

    @property
    def content(self) -> Content:
        """The files of the training table; those of uncached images are known by their sizes alone."""
        return Content(self.train, self.workspace.cache(), exact=self.competition.input.cache != "off")

    def with_train(self, table: Table) -> Experiment:
        """Return the same with another training table, such as one with more targets."""
        return replace(self, _train=table)

    def with_test(self, table: Table, *, sizes: Mapping[str, Size] | None = None) -> Experiment:
        """Return the same with other rows for the test set, and the size of images that do not tell it themselves."""
        return replace(self, _sizes=dict(sizes or {}), _test=table)

    def filler(self) -> np.ndarray:
        """Return [K] what is said of a test row without a readable image: the training rows' share of each target."""
        return training_share(self.train) if self.share is None else self.share

    def table(self, split: Literal["train", "test"], *, data: Path | None = None, look: bool = True) -> Table:
        """Read a split's table.

        Args:
            split: `train` or `test`.
            data: another folder of the same layout.
            look: open every file to leave out or mark what cannot be read, where `on_problem` says so.
        """
        competition = self.competition
        if data is None:
            data = self.data
            if not data.exists():
                raise SourceError(
                    f"the data of '{competition.name}' is not in '{data}'", "the competition's files there",
                    f"`kbench download {competition.name}`",
                )  # fmt: skip
        section = competition.data
        part = section.train if split == "train" else section.test
        if part is None:
            raise ConfigError(
                f"'{competition.name}' has no test set in its YAML",
                "`data: {test: {images: FOLDER}}`",
                "add it to the YAML",
            )
        request = Request(
            root=data, split=split, task=competition.task, csv=part.csv, images=_texts(part.images), suffix=part.suffix,
            id=part.id, where=dict(part.where), target=_texts(section.target),
            classes=None if section.classes is None else tuple(section.classes), mask=mask_kind(competition, self.data),
            metadata=tuple(section.metadata), on_problem=section.on_problem, files=competition.input.files,
            dates=tuple(competition.input.dates), missing=competition.input.missing,
        )  # fmt: skip
        table = read_table(section.layout.name, section.layout.params, request)
        if section.on_problem != "error" and look:
            table = self._readable(table, split)
        for text in table.notes:
            console.warn(text)
        return table

    def _readable(self, table: Table, split: str) -> Table:
        """Leave out rows whose images or masks cannot be decoded; every file is looked at once until it changes.

        Such rows of a test set that are filled stay, marked.
        """
        filled = is_filled(split, self.competition.data.on_problem, self.competition.task)
        table = marked(table, _without_files(table), WHY) if filled else without(table, _without_files(table), WHY)
        known = np.zeros(len(table), dtype=bool) if table.unreadable is None else table.unreadable
        whole, table = table, table.select(~known)  # a file that is missing is known already
        every = [*table.images, *((table.masks or ()) if not table.encoded else ())]
        rows = [tuple(table.root / path for path in paths if path) for paths in every]
        opening, section = opening_of(self.competition), self.competition.input
        how = [section.reader.model_dump(), section.channels, section.orientation, section.max_pixels]

        def look() -> list[int]:
            with console.bar("looking for unreadable images") as advance:
                report = look_at_images(
                    table, jobs=2 * cores(), deep=True, opening=opening,
                    progress=lambda what, done, total: advance(done, total),
                )  # fmt: skip
            return sorted(report.rows)

        bad = np.zeros(len(table), dtype=bool)
        bad[memoised(self.workspace.cache(), "unreadable", rows, look, key=how)] = True
        if filled:
            unreadable = np.zeros(len(whole), dtype=bool)
            unreadable[np.flatnonzero(~known)[bad]] = True
            return marked(whole, unreadable, WHY)
        return self._with_right_masks(without(table, bad, WHY))

    def _with_right_masks(self, table: Table) -> Table:
        """Leave out rows whose masks say what they cannot: wrong run lengths, values that are no class."""
        kind = mask_kind(self.competition, self.data)
        if kind is None or table.masks is None:
            return table
        written = () if table.encoded else table.masks
        rows = [tuple(table.root / path for path in paths if path) for paths in [*table.images, *written]]
        part = self.competition.data.masks

        def look() -> list[int]:
            with console.bar("looking for wrong masks") as advance:
                sizes = sizes_of(table, size_reader(self.competition), decoding_of(self.competition))
                return look_at_masks(table, kind=kind, size_of=sizes, progress=advance, jobs=2 * cores()).rows

        facts = [
            None if part is None else part.model_dump(),
            self.competition.input.orientation,
            kind.names,
            kind.facts,
        ]
        what = files.digest([table.masks, *facts])
        bad = np.zeros(len(table), dtype=bool)
        bad[memoised(self.workspace.cache(), f"wrong-masks-{what}", rows, look)] = True
        return without(table, bad, "with a wrong mask")

    @property
    def folds(self) -> Folds:
        """The folds; cut and written when there are none."""
        if self._folds is None:
            path = self.workspace.folds(self.competition.name)
            self._folds = read_folds(path) if path.is_file() else self.cut_folds()
            self._folds.check(self.train)
        return self._folds

    @cached_property
    def _links(self) -> np.ndarray:
        """[P, 2] row numbers of training images that resemble each other; in a trial none is known to."""
        return np.empty((0, 2), dtype=np.int64) if self.trial else links(self.train, self._prints(self.train))

    def _prints(self, table: Table) -> Prints:
        reader = reader_of(self.competition) if self.competition.input.reader.name == "raster" else None
        with console.bar("looking for near-duplicates") as advance:
            return hash_images(table, folder=self.workspace.cache(), progress=advance, jobs=2 * cores(), reader=reader)

    def doubtful_rows(self, *, deep: bool = False) -> list[str]:
        """Return warnings of images that stand in the data twice, of those not looked at, and of rows without a group.

        Args:
            deep: compare the pixels of training and test images; their bytes by default.
        """
        prints, warnings = self._prints(self.train), []
        unseen = self.train.ids[prints.unseen()]
        if len(unseen):
            names = first_names([str(name) for name in unseen])
            warnings.append(f"near-duplicates of {counted(len(unseen), 'image')} cannot be looked for: {names}")
        warnings += contradictions(self.train, copies(self.train, prints))
        if self.competition.data.test is not None:
            test = readable(self.test)
            pairs = same_files(self.train, test)
            if deep:
                pairs += same_pixels(self.train, test, (prints.pixels, self._prints(test).pixels))
            warnings += leaked(self.train, test, pairs)
        return warnings + unknown_groups(self.train, self.competition.folds.group)

    def leaking(self, folds: Folds) -> list[str]:
        """Return a warning when near-duplicates fall on both sides of a fold; nothing when none do."""
        return leaks(folds, self._links)

    def to_cut(self) -> Table:
        """Return the training table with the columns folds ask for that are made from files.

        `auto`: a value near-duplicates share (`group: auto`); `coverage`: how much the class covers (`by: [coverage]`).
        """
        table, columns = self.train, dict[str, np.ndarray]()
        known: list[str] = [] if table.meta is None else list(table.meta.columns)
        if self.competition.folds.group == AUTO and AUTO not in known:
            columns[AUTO] = table.ids[clusters(len(table), self._links)]
        kind = mask_kind(self.competition, self.data)
        if kind is not None and COVERAGE in self.competition.folds.by and COVERAGE not in known:
            columns[COVERAGE] = np.full(len(table), "00") if self.trial else self._coverage(kind)
        meta = pd.DataFrame(index=range(len(table))) if table.meta is None else table.meta
        return replace(table, meta=meta.assign(**columns)) if columns else table

    def _coverage(self, kind: MaskKind) -> np.ndarray:
        with console.bar("measuring masks") as advance:
            return coverage(
                self.train, kind=kind, progress=advance, jobs=cores(),
                size_of=sizes_of(self.train, size_reader(self.competition), decoding_of(self.competition)),
            )  # fmt: skip

    def cut_folds(self) -> Folds:
        """Cut folds as the YAML says and write them; those of a trial are only as a real run would shape them."""
        section = self.competition.folds
        cut = Cut(section.n, section.seed, tuple(section.by), section.group, "n" not in section.model_fields_set)
        folds = make_folds(self.to_cut(), section.strategy, cut, section.options)
        folds.manifest["table"] = self.train.fingerprint()
        self._folds = folds
        if self.trial:
            return folds
        folds.manifest["warnings"] += self.leaking(folds)
        path = write_folds(self.workspace.folds(self.competition.name), folds)
        console.wrote(path)
        for text in folds.manifest.get("warnings", []):
            console.warn(text)
        return folds

    @cached_property
    def format(self) -> Format:
        """The submission format."""
        part = self.competition.submission.format
        format: Format = registry.build(
            "format", part.name, part.params, _names=self.train.target_names, _task=self.competition.task,
            _sizes=self.test_size, _places=self.test_place, _images=lambda: self._test_ids,
            _root=self.data,
            _threshold=label_threshold(self.competition, default=0.2),
        )  # fmt: skip
        return format

    @cached_property
    def _test_ids(self) -> frozenset[str]:
        return frozenset(self.test.ids.tolist()) if self.competition.data.test is not None else frozenset()

    def test_size(self, name: str) -> tuple[int, int]:
        """Return height and width of a test image, read from the head of its file once.

        Raises:
            DataError: there is no such image, or it cannot be read.
        """
        if name not in self._sizes:
            paths = self._test_files(name)
            header: Any = "not in the test set"
            if paths:
                reader = size_reader(self.competition)
                header = look(first_path(paths), decoding=decoding_of(self.competition))
                header = header if reader is None or isinstance(header, str) else size_by(reader, paths)
            if isinstance(header, str) and paths:
                row, gone = int(np.searchsorted(self.test.ids, name)), self.test.unreadable
                if gone is not None and gone[row]:
                    header = stand_in_size(self.test, row, decoding_of(self.competition))
            if isinstance(header, str):
                raise DataError(
                    f"the image of '{name}' is {header}", "an image of every test row", "`kbench check --images`"
                )
            self._sizes[name] = header[:2]
        return self._sizes[name]

    def test_place(self, name: str) -> Georeference:
        """Return where the pixels of a test image lie; nowhere, where there is no such image."""
        paths = () if self.competition.data.test is None else self._test_files(name)
        return read_georeference(first_path(paths)) if paths else Georeference()

    def _test_files(self, name: str) -> tuple[Path, ...]:
        """Return the files of a test image; none where there is no such image."""
        row = int(np.searchsorted(self.test.ids, name))
        if row == len(self.test) or self.test.ids[row] != name:
            return ()
        return tuple(path_of(self.test.root, image) for image in self.test.images[row])

    @property
    def sample(self) -> Path:
        """The sample submission."""
        return self.data / self.competition.submission.sample

    def read_sample(self, folder: Path | None = None) -> pd.DataFrame:
        """Return the sample submission, or what one would ask for: rows of the test ids, where the user has none.

        Args:
            folder: where it is; the data folder by default.

        Raises:
            SubmissionError: it cannot be read, or is named in the YAML and missing.
        """
        section, path = self.competition.submission, (folder or self.data) / self.competition.submission.sample
        own = "sample" not in section.model_fields_set and self.competition.source.name != "kaggle"
        own &= self.competition.data.test is not None and self.format.own_sample is not None
        return self._own_sample if own and not path.is_file() else read_sample(path)

    @cached_property
    def _own_sample(self) -> pd.DataFrame:
        assert self.format.own_sample is not None, "asked only then"
        solution = self.source().solution(self.data)
        columns = list(read_frame(solution, text=True).columns) if solution is not None and solution.is_file() else []
        sample = self.format.own_sample(self.test.ids.tolist(), [str(name) for name in columns])
        console.warn(
            f"no sample submission: the file is written from the {len(self.test):,} test ids, with the columns "
            f"{first_names([str(name) for name in sample.columns])}"
        )
        return sample

    def source(self) -> Any:
        """Return the competition's source."""
        part = self.competition.source
        return registry.build("source", part.name, part.params, _root=self.workspace.root)

    def weights(self) -> Path | None:
        """Return the file of `model.weights`."""
        path = self.competition.model.weights
        return None if path is None else self.workspace.own_file(path)

    def plugin_files(self) -> list[Path]:
        """Return the files of the plug-ins."""
        return [self.plugins / name for name in self.competition.plugins]

    def pseudo(self) -> Path | None:
        """Return the JSON of `pseudo`.

        Raises:
            ConfigError: it does not exist.
        """
        pseudo = self.competition.pseudo
        if pseudo is None:
            return None
        run, _, name = pseudo.partition("/")
        path = self.workspace.run(self.competition.name, run).pseudo(name or PSEUDO)
        if not path.is_file():
            raise ConfigError(
                f"`pseudo: {pseudo}` in the YAML, and there is no '{path}'", "pseudo-labels of a run",
                f"`kbench pseudo-label {run}{f' --name {name}' if name else ''}`",
            )  # fmt: skip
        return path

    def groups(self, table: Table) -> np.ndarray | None:
        """Return [N] groups of a table of training rows, which intervals resample, or None.

        Rows of a group resemble each other.
        """
        section = self.competition.folds
        groups = self.folds.groups if section.group == AUTO else groups_in(self.train, section)
        return None if groups is None else np.asarray(groups[np.searchsorted(self.train.ids, table.ids)])


def _without_files(table: Table) -> np.ndarray:
    """Return [N] bool, which rows have something else than files where images and masks should be."""
    absent = np.zeros(len(table), dtype=bool)
    written = table.masks if table.masks is not None and not table.encoded else ((),) * len(table)
    for row, paths in enumerate(zip(table.images, written, strict=True)):
        absent[row] = not all((table.root / path).is_file() for part in paths for path in part if path)
    return absent if table.unreadable is None else absent & ~table.unreadable


def groups_in(table: Table, folds: FoldSection) -> np.ndarray | None:
    """Return [N] groups of a table's rows, by what cut the folds: frames of a moment, or a column's values."""
    if folds.strategy == "blocks":
        return moments(table, folds.by, order=folds.options.get("order"), gap=folds.options.get("gap", 0.0))
    return None if folds.group in (None, AUTO) else table.column(str(folds.group))


def mask_kind(competition: Competition, data: Path) -> MaskKind | None:
    """Return how a competition's masks are written, or None.

    Args:
        competition: the validated YAML.
        data: the data folder.
    """
    part = competition.data.masks
    if part is None:
        return None
    kind: MaskKind = registry.build(
        "mask",
        part.name,
        part.params,
        _classes=tuple(competition.data.classes or ()),
        _task=competition.task,
        _root=data,
        _decoding=decoding_of(competition),
    )
    return kind


def opening_of(competition: Competition) -> Opening:
    """Return how the competition opens its files, for a look at them."""
    own = competition.input.reader.name != "image"
    return Opening(decoding_of(competition), reader_of(competition), headers=not own)


def label_threshold(competition: Competition, *, default: float = 0.5) -> Any:
    """Return the metric's threshold of labels, one or one per label; the default where it has none."""
    threshold = competition.metric.params.get("threshold")
    if threshold is not None:
        return threshold
    parameter = registry.get("metric", competition.metric.name).parameters().get("threshold")
    return default if parameter is None or parameter.default is parameter.empty else parameter.default


def size_reader(competition: Competition) -> Reader | None:
    """Return what tells the size of an image: a reader, or None where the header of its file does."""
    return None if competition.input.reader.name == "image" else reader_of(competition)


def _texts(value: str | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def open_experiment(choice: Choice) -> Experiment:
    """Find the workspace, choose the competition, read and check its YAML."""
    workspace = find_workspace(choice.workspace)
    name = choose(workspace, choice.competition)
    competition = load_competition(workspace, name, experiment=choice.experiment, assignments=choice.assignments)
    return Experiment(workspace, competition, choice, workspace.own(name))
