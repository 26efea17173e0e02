"""What `input:` may say of files, dates, bands and normalisation; hashes of YAMLs without them stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kbench.config.competition import Competition, Input
from kbench.config.reading import validate
from kbench.errors import ConfigError
from kbench.runs.steps import channels, reader_key, steps_of

BASE: dict[str, Any] = {
    "task": "regression", "source": {"name": "local", "path": "files"}, "metric": "rmse",
    "data": {"metadata": ["area"]},
    "stages": {"all": {"lr": 1e-3, "keep": ["last"]}},
}  # fmt: skip
INPUT: dict[str, Any] = {
    "reader": "raster", "files": {"S1": "{id}_S1_{date}.tif", "S2": "{id}_S2_{date}.tif", "dem": "{id}.tif"},
    "dates": ["00", "01"], "missing": "mask",
    "bands": {"S1": {"range": [[-25, 29], [-62, 28]]}, "S2": {"names": ["green", "nir"], "scale": 10000.0},
              "dem": {"count": 1}},
}  # fmt: skip


def read(section: dict[str, Any], **more: Any) -> Competition:
    content = json.loads(json.dumps({**BASE, **more, "input": section}))
    return validate(content, file="x.yaml", folder=Path(), name="x")


def refused(section: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(section, **more)
    return str(caught.value)


def test_channels_are_counted_and_named() -> None:
    made = read({**INPUT, "derive": ["ndwi"]}).input
    assert made.channels == 11
    assert [str(one) for one in channels(made)][:5] == [
        "S1.1 of 00", "S1.2 of 00", "S2.green of 00", "S2.nir of 00", "derived.ndwi of 00"
    ]  # fmt: skip
    assert str(channels(made)[-1]) == "dem.1"
    assert [str(one) for one in channels(Input())] == ["image.1", "image.2", "image.3"]


def test_a_photograph_is_hashed_and_cached_as_before() -> None:
    plain = read({"size": 64})
    assert set(plain.input.view()) == {
        "reader", "size", "channels", "crop", "mean", "std", "cache", "orientation", "decode", "max_pixels"
    }  # fmt: skip
    assert "axis_dropout" not in plain.stages["all"].view()
    assert reader_key(plain) == [{"name": "image"}, 3]
    assert steps_of(plain.input) == []


def test_what_pixels_depend_on_is_in_the_key_of_the_cache() -> None:
    keys = [
        json.dumps(reader_key(read(section)))
        for section in (
            INPUT, {**INPUT, "derive": ["ndwi"]}, {**INPUT, "normalise": {"by": "image"}}, {**INPUT, "dates": ["00"]},
            {**INPUT, "align": {"to": "S2"}}, {**INPUT, "bands": {**INPUT["bands"], "dem": {"count": 1, "nodata": -1}}},
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"channels": 4}, "input.channels: is 4, and files, dates and bands make 9"),
        ({"reader": "image"}, "input.reader: 'image' reads photographs"),
        ({"dates": []}, "has `{date}`, and there are no dates"),
        ({"dates": ["00", "00"]}, "input.dates: '00' stands twice"),
        ({"files": {**INPUT["files"], "dem": "dem.tif"}}, "input.files.dem: 'dem.tif' has no `{id}`"),
        ({"files": {**INPUT["files"], "dem": "{id}_{month}.tif"}}, "`{month}`"),
        ({"bands": {"S1": INPUT["bands"]["S1"], "S2": INPUT["bands"]["S2"]}}, "input.bands.dem: is missing"),
        ({"bands": {**INPUT["bands"], "S3": {"count": 1}}}, "input.bands.S3: is no file of `input.files`"),
        ({"bands": {**INPUT["bands"], "dem": {"count": 2, "names": ["a"]}}}, "has 1 by `names`, 2 by `count`"),
        ({"bands": {**INPUT["bands"], "dem": {"range": [[3, 3]]}}}, "3 is not above 3"),
        ({"normalise": {"by": "region"}}, "input.normalise.group: is missing"),
        ({"normalise": {"by": "region", "group": "aera"}}, "'aera' is not in data.metadata"),
        ({"normalise": {"by": "image", "group": "area"}}, "would have no effect by 'image'"),
        ({"normalise": {"by": "percentile", "percentiles": [99, 1]}}, "the lower one first"),
        ({"align": {"to": "S3"}}, "input.align.to: 'S3' is no file"),
        ({"align": {"to": "dem", "graph": {"S1": "S2", "S2": "S1"}}}, "does not lead to 'dem'"),
        ({"derive": ["ndwj"]}, "ndwi"),
    ],
)  # fmt: skip
def test_contradictions_are_told_at_their_place(change: dict[str, Any], told: str) -> None:
    assert told in refused({**INPUT, **change})


def test_files_are_what_dates_bands_and_dropout_need() -> None:
    assert "input.dates: stands without `files`" in refused({"dates": ["00"]})
    stage = {"all": {"lr": 1e-3, "keep": ["last"], "axis_dropout": {"axis": "date"}}}
    assert "stages.all.axis_dropout: images have no value" in refused({**INPUT, "missing": "error"}, stages=stage)
    assert read(INPUT, stages=stage).stages["all"].axis_dropout is not None
