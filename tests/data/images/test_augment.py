from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from drawn_images import drawn

from kbench import registry
from kbench.data.images.augment import Augmentation, basic, none, pipeline, side_on, top_down
from kbench.data.images.crops import Geometry
from kbench.errors import ConfigError, DataError

DRAWS = 4000


def geometries(augmentation: Augmentation) -> list[Geometry]:
    rng = np.random.default_rng(0)
    assert augmentation.geometry is not None
    return [augmentation.geometry(rng) for _ in range(DRAWS)]


def share(values) -> float:
    return float(np.mean(list(values)))


def lit(image: np.ndarray, seed: int = 0, **params) -> np.ndarray:
    pixels = basic(**params).pixels
    assert pixels is not None
    return pixels(image, None, np.random.default_rng(seed))[0]


def expected_light(image: np.ndarray, seed: int, light: float, contrast: float) -> np.ndarray:
    """The lesson's formula on values of 0..1."""
    rng = np.random.default_rng(seed)
    beta, c = rng.uniform(-light, light), rng.uniform(-contrast, contrast)
    factor = c + 1 if c >= 0 else -1 / (c - 1)
    return np.clip((image - image.mean()) * factor + image.mean() + beta, 0, 1)


@pytest.mark.parametrize("preset", [basic, side_on, top_down])
def test_three_images_in_four_are_rotated_by_up_to_ten_degrees(preset) -> None:
    angles = np.array([geometry.angle for geometry in geometries(preset())])
    turned = angles[angles != 0]
    assert share(angles != 0) == pytest.approx(0.75, abs=0.02)
    assert np.abs(turned).max() <= 10
    assert np.histogram(turned, 4, (-10, 10))[0] == pytest.approx([len(turned) / 4] * 4, rel=0.1)


@pytest.mark.parametrize(("preset", "largest"), [(basic, 1.2), (side_on, 1.1), (top_down, 1.05)])
def test_three_images_in_four_are_zoomed_by_up_to_the_largest_zoom(preset, largest: float) -> None:
    zooms = np.array([geometry.zoom for geometry in geometries(preset(zoom=largest))])
    assert share(zooms != 1) == pytest.approx(0.75, abs=0.02)
    assert zooms.min() >= 1
    assert largest - 0.005 < zooms.max() <= largest


def test_the_mild_preset_never_mirrors_or_turns() -> None:
    assert not any(geometry.flip or geometry.turns for geometry in geometries(basic()))


def test_from_the_side_half_the_images_are_mirrored_and_none_is_turned() -> None:
    found = geometries(side_on())
    assert share(geometry.flip for geometry in found) == pytest.approx(0.5, abs=0.025)
    assert not any(geometry.turns for geometry in found)


def test_from_above_all_eight_symmetries_are_equally_likely() -> None:
    found = geometries(top_down())
    counts = np.bincount([4 * geometry.flip + geometry.turns for geometry in found], minlength=8)
    assert counts == pytest.approx([DRAWS / 8] * 8, rel=0.15)


def test_no_augmentation_changes_nothing() -> None:
    assert none() == Augmentation(None, None)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_lighting_is_the_lessons_formula(seed: int, dtype: type) -> None:
    image = drawn(1, size=(16, 16))[0]
    image[0, 0], image[0, 1] = 0, 255  # from 0 to 255, so that the whole range is the image's own
    scaled = image / np.float32(255)
    made = lit(image if dtype is np.uint8 else scaled, seed, light=0.2, contrast=0.3)
    shown = made / np.float32(255) if dtype is np.uint8 else np.clip(made, 0, 1)
    np.testing.assert_allclose(shown, expected_light(scaled, seed, 0.2, 0.3), atol=0.51 / 255)


def test_lighting_draws_evenly_in_its_ranges() -> None:
    grey = np.full((2, 2, 1), 128, np.uint8)
    shifts = np.array([float(lit(grey, seed, light=0.1, contrast=0)[0, 0, 0]) - 128 for seed in range(1000)]) / 255
    assert np.abs(shifts).max() <= 0.1 + 0.003
    assert np.histogram(shifts, 4, (-0.1, 0.1))[0] == pytest.approx([250] * 4, rel=0.2)


def test_values_far_from_one_survive_a_change_of_light() -> None:
    decibels = (-25 + 10 * drawn(1, dtype=np.float32)[0]).astype(np.float32)
    made = lit(decibels, 3)
    assert made.dtype == np.float32
    assert np.abs(made - decibels).max() < 0.2 * np.ptp(decibels)
    assert np.abs(made - decibels).max() > 0


def test_sixteen_bits_are_lit_by_the_range_they_use() -> None:
    reflectance = (1000 + 2000 * drawn(1, dtype=np.float32)[0]).astype(np.uint16)
    made = lit(reflectance, 1, light=0.1, contrast=0.1)
    assert made.dtype == np.uint16
    assert 0 < np.abs(made.astype(int) - reflectance).max() <= 0.2 * np.ptp(reflectance) + 1


@pytest.mark.parametrize("channels", [1, 3, 5, 15])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_lighting_keeps_shape_and_dtype_and_leaves_the_mask(channels: int, dtype: type) -> None:
    image, mask = drawn(1, channels=channels, dtype=dtype)[0], np.ones((10, 12, 1), np.uint8)
    pixels = basic().pixels
    assert pixels is not None
    made, same = pixels(image, mask, np.random.default_rng(0))
    assert (made.shape, made.dtype) == (image.shape, image.dtype)
    assert same is mask


def test_lighting_of_nothing_is_left_out() -> None:
    assert basic(light=0, contrast=0).pixels is None


@pytest.mark.parametrize("preset", [basic, side_on, top_down])
@pytest.mark.parametrize(
    "params", [{"rotate": -1}, {"prob": 1.5}, {"zoom": 0.9}, {"light": -0.1}, {"contrast": -1}, {"light": 2}]
)
def test_values_out_of_range_are_an_error(preset, params) -> None:
    with pytest.raises(ConfigError, match=next(iter(params))):
        preset(**params)


@pytest.mark.parametrize("name", ["basic", "side_on", "top_down"])
def test_the_same_sample_is_augmented_the_same_way(name: str) -> None:
    augmentation = registry.build("augmentation", name, {})
    image = drawn(1)[0]
    both = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        geometry = augmentation.geometry(rng)
        both.append((geometry, augmentation.pixels(image, None, rng)[0].tobytes()))
    assert both[0] == both[1]


def test_a_pipeline_depends_on_the_sample_alone() -> None:
    pixels = pipeline(
        transforms=["HorizontalFlip", {"name": "GaussNoise", "p": 1}, {"name": "Rotate", "p": 0.5}]
    ).pixels
    assert pixels is not None
    image = drawn(1)[0]

    def made(seed: int) -> bytes:
        return pixels(image, None, np.random.default_rng(seed))[0].tobytes()

    alone = [made(seed) for seed in range(6)]
    assert [made(seed) for seed in reversed(range(6))] == alone[::-1]
    assert len(set(alone)) == 6


def test_a_pipeline_does_not_touch_the_global_random_numbers() -> None:
    pixels = pipeline(transforms=[{"name": "GaussNoise", "p": 1}]).pixels
    assert pixels is not None
    np.random.seed(3)
    before = np.random.get_state()[1].tobytes()
    pixels(drawn(1)[0], None, np.random.default_rng(0))
    assert np.random.get_state()[1].tobytes() == before


def test_a_pipeline_does_not_write_into_the_image_it_is_given() -> None:
    pixels = pipeline(transforms=[{"name": "CoarseDropout", "p": 1}]).pixels
    assert pixels is not None
    image = drawn(1, size=(40, 40))[0]
    before = image.copy()
    made, _ = pixels(image, None, np.random.default_rng(0))
    assert (made != before).any()
    np.testing.assert_array_equal(image, before)


def test_a_pipeline_moves_image_and_mask_alike_and_lights_the_image_alone() -> None:
    pixels = pipeline(
        transforms=[{"name": "VerticalFlip", "p": 1}, {"name": "RandomBrightnessContrast", "p": 1}]
    ).pixels
    assert pixels is not None
    image = drawn(1)[0]
    mask = (np.arange(120) % 2).astype(np.uint8).reshape(10, 12, 1)
    made, made_mask = pixels(image, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(made_mask, mask[::-1])
    assert (made != image[::-1]).any()


@pytest.mark.parametrize("channels", [1, 6])
def test_a_pipeline_takes_any_number_of_channels_its_transforms_take(channels: int) -> None:
    pixels = pipeline(transforms=[{"name": "HorizontalFlip", "p": 1}]).pixels
    assert pixels is not None
    image = drawn(1, channels=channels)[0]
    np.testing.assert_array_equal(pixels(image, None, np.random.default_rng(0))[0], image[:, ::-1])


@pytest.mark.parametrize(
    ("transforms", "says"),
    [(["HorizontalFlipp"], "HorizontalFlip"), (["Compose"], "Compose"), ([{"limit": 3}], "None"),
     ([{"name": "Rotate", "limmit": 3}], "limmit"), ([{"name": "GaussNoise", "std_range": "no"}], "GaussNoise")],
)  # fmt: skip
def test_a_transform_that_cannot_be_built_is_an_error_when_the_yaml_is_checked(transforms, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pipeline(transforms=transforms)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Normalize", "ToTensorV2", "Transpose", {"name": "Resize", "height": 4, "width": 4, "p": 1}]
)
def test_a_transform_that_changes_size_or_dtype_is_an_error(name) -> None:
    item = {"name": name, "p": 1} if isinstance(name, str) else name
    pixels = pipeline(transforms=[item]).pixels
    assert pixels is not None
    with pytest.raises(ConfigError, match="size and dtype") as caught:
        pixels(drawn(1)[0], None, np.random.default_rng(0))
    assert item["name"] in caught.value.what


def test_a_transform_that_dislikes_the_channels_is_an_error_that_names_it() -> None:
    pixels = pipeline(transforms=[{"name": "HueSaturationValue", "p": 1}]).pixels
    assert pixels is not None
    with pytest.raises(DataError, match="HueSaturationValue"):
        pixels(drawn(1, channels=6)[0], None, np.random.default_rng(0))


@pytest.mark.slow
def test_nothing_is_fetched_from_the_network_on_import() -> None:
    program = """
import socket, sys
def refuse(*args, **kwargs):
    sys.exit("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from kbench.data.images.augment import pipeline
pipeline(transforms=["HorizontalFlip"])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_transforms_hold_others() -> None:
    inner = [{"name": "HorizontalFlip", "p": 1}, {"name": "OneOf", "transforms": ["Transpose"], "p": 1}]
    pixels = pipeline(transforms=[{"name": "OneOf", "transforms": inner, "p": 1}]).pixels
    assert pixels is not None
    image = drawn(1, size=(8, 8))[0]
    made = {pixels(image, None, np.random.default_rng(seed))[0].tobytes() for seed in range(20)}
    assert made == {
        np.ascontiguousarray(image[:, ::-1]).tobytes(),
        np.ascontiguousarray(image.swapaxes(0, 1)).tobytes(),
    }
    with pytest.raises(ConfigError, match="Nope"):
        pipeline(transforms=[{"name": "SomeOf", "n": 1, "transforms": ["Nope"]}])


def test_what_comes_into_an_image_is_unknown_to_its_mask() -> None:
    pixels = pipeline(transforms=[{"name": "Affine", "translate_px": {"x": 3, "y": 0}, "p": 1}]).pixels
    assert pixels is not None
    image = np.full((8, 8, 3), 9, dtype=np.uint8)
    for mask in (np.ones((8, 8, 1), dtype=np.uint8), np.ones((8, 8, 2), dtype=np.float32)):
        _, moved = pixels(image, mask, np.random.default_rng(0))
        assert moved is not None
        came = np.isnan(moved) if moved.dtype == np.float32 else moved == 255
        assert came.sum() == 3 * 8 * mask.shape[2]
        assert (moved[~came] == 1).all()
