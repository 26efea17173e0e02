"""Pixel members: an estimator of scikit-learn on the channels of a pixel and their means around it (D-12).

It is trained, kept, predicted, scored and combined as any network is: an epoch of patches hands over pixels
(`collect`), the estimator is fitted to them when the model is judged or kept, and what it has learned are arrays in
the model's state: the weights of a linear one, the nodes of trees. So a snapshot needs neither pickle nor
scikit-learn. To add an estimator, return its arrays from a function of `_FITS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from kbench.errors import ConfigError, TrainingError, check_number
from kbench.registry import register
from kbench.tasks import DENSE, SEGMENTATION, exclusive

Estimator = Literal["linear", "forest", "boosting"]
Arrays = dict[str, np.ndarray]
_NEVER = -30.0  # logit of a class that no training pixel has
_AT_ONCE = 1 << 22  # places in trees that are looked up at once
_ARRAYS = ("weight", "bias", "feature", "threshold", "left", "right", "value", "column")


class PixelModel(nn.Module):
    """Normalised images [B, C, H, W] to logits, or numbers, [B, K, H, W], each pixel by its own features.

    Args:
        n_outputs: K.
        in_channels: C.
        fit: (features [n, F], target of a task, K) -> arrays.
        task: a dense task.
        blur: sides of the squares around a pixel whose means are features too.
        pixels: how many are kept to be fitted to, drawn evenly from all that are handed over.
    """

    weight: Tensor
    bias: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    column: Tensor

    def __init__(
        self,
        n_outputs: int,
        in_channels: int,
        *,
        fit: Callable[..., Arrays],
        task: str,
        blur: Sequence[int],
        pixels: int,
    ) -> None:
        super().__init__()
        self._fit, self._task, self._blur, self._pixels = fit, task, tuple(blur), pixels
        self.n_outputs = n_outputs
        self.anchor = nn.Parameter(torch.zeros(1))  # what an optimiser holds; nothing depends on it
        self._generator = torch.Generator().manual_seed(0)
        self._kept: list[Tensor] = []
        self._set(_nothing(n_outputs, in_channels * (1 + len(self._blur))))
        self.register_state_dict_pre_hook(lambda module, prefix, keep: self.fit())  # type: ignore[no-untyped-call]

    def _set(self, arrays: Arrays) -> None:
        for name in _ARRAYS:
            self.register_buffer(name, torch.as_tensor(arrays[name]).to(self.anchor.device))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        for name in _ARRAYS:  # which are as long as what was learned
            if f"{prefix}{name}" in state:
                self.register_buffer(name, torch.empty_like(state[f"{prefix}{name}"], device=self.anchor.device))
        super()._load_from_state_dict(state, prefix, *rest)

    def train(self, mode: bool = True) -> PixelModel:
        """Set the mode; what was collected is fitted to before the model is judged."""
        super().train(mode)
        if not mode:
            self.fit()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return [B, F, H, W] float32: the channels, and their means in a square around each pixel."""
        images = images.float()
        parts = [images]
        for side in self._blur:
            around = pad(images, [side // 2] * 4, mode="replicate")
            parts.append(avg_pool2d(around, side, stride=1))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def collect(self, images: Tensor, target: Tensor) -> None:
        """Keep some of a batch's known pixels.

        Args:
            images: normalised [B, C, H, W].
            target: as a loss takes it.
        """
        truth = target.unsqueeze(1).double() if target.ndim == 3 else target.double()  # [B, 1 or K, H, W]
        truth = truth.where(truth > -100, torch.nan) if target.ndim == 3 else truth
        pixels = torch.cat([self.features(images).double(), truth], 1).permute(0, 2, 3, 1).flatten(0, 2).cpu()
        pixels = pixels[~pixels[:, -truth.shape[1] :].isnan().all(1)]
        drawn = torch.rand(len(pixels), 1, generator=self._generator, dtype=torch.float64)
        self._kept.append(torch.cat([drawn, pixels], 1))
        if sum(map(len, self._kept)) > 2 * self._pixels:
            self._kept = [self._few()]

    def _few(self) -> Tensor:
        """Return the collected pixels whose random number is among the smallest."""
        every = torch.cat(self._kept)
        return every[every[:, 0].argsort()[: self._pixels]]

    def fit(self) -> None:
        """Fit the estimator to what was collected since the last time, if anything was.

        Raises:
            TrainingError: no pixel has a known target.
        """
        if not self._kept:
            return
        rows, self._kept = self._few(), []
        if not len(rows):
            raise TrainingError(
                "no training pixel has a known target", "masks with known pixels", "look at the masks: `kbench inspect`"
            )
        count = self.weight.shape[1]
        learned = self._fit(
            rows[:, 1 : count + 1].float().numpy(), rows[:, count + 1 :].numpy(), self.n_outputs, self._task
        )
        self._set({**_nothing(self.n_outputs, count), **learned})

    def forward(self, images: Tensor) -> Tensor:
        """Return what the estimator says; while it trains nothing but zeros, which no gradient changes."""
        if self.training:
            return self.anchor * torch.zeros(len(images), self.n_outputs, *images.shape[-2:], device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            rows = self.features(images).permute(0, 2, 3, 1)
            said = self._said(rows.reshape(-1, rows.shape[-1]))
        return said.view(*rows.shape[:3], self.n_outputs).permute(0, 3, 1, 2).contiguous()

    def _said(self, rows: Tensor) -> Tensor:
        if not len(self.feature):
            return rows @ self.weight.T + self.bias
        step = max(1, _AT_ONCE // len(self.feature))
        return torch.cat([self._trees(rows[first : first + step]) for first in range(0, len(rows), step)])

    def _trees(self, rows: Tensor) -> Tensor:
        """Return [n, K] of what all trees say of [n, F] rows; a leaf is followed by itself."""
        trees, nodes = self.feature.shape
        first = torch.arange(trees, device=rows.device) * nodes
        at = first.expand(len(rows), -1)
        feature, threshold, left, right = (
            one.flatten() for one in (self.feature, self.threshold, self.left, self.right)
        )
        while True:
            goes_left = rows.gather(1, feature[at]) <= threshold[at]
            below = first + torch.where(goes_left, left[at], right[at])
            if torch.equal(below, at):
                break
            at = below
        said = self.value.flatten(0, 1)[at]  # [n, T, K or 1]
        if said.shape[2] == 1 and self.n_outputs > 1:
            total = torch.zeros(len(rows), self.n_outputs, device=rows.device).index_add_(1, self.column, said[..., 0])
            return total + self.bias
        total = said.sum(1) + self.bias
        return total if "regression" in self._task or len(self.column) else _logits(total, self._task)


def _logits(shares: Tensor, task: str) -> Tensor:
    """Return logits of the shares of trees that say each class."""
    shares = shares.clamp(1e-6, 1 - 1e-6)
    return shares.log() if exclusive(task, shares.shape[1]) else shares.logit()


def _nothing(n_outputs: int, features: int) -> Arrays:
    """Return the arrays of an estimator that says 0 everywhere."""
    empty = np.zeros((0, 0))
    return {
        "weight": np.zeros((n_outputs, features), np.float32), "bias": np.zeros(n_outputs, np.float32),
        "feature": empty.astype(np.int64), "threshold": empty.astype(np.float32), "left": empty.astype(np.int64),
        "right": empty.astype(np.int64), "value": np.zeros((0, 0, 1), np.float32), "column": np.zeros(0, np.int64),
    }  # fmt: skip


@register("model", tasks=DENSE, groups=1)
def pixels(
    n_outputs: int,
    in_channels: int,
    *,
    _task: str = "segmentation",
    estimator: Estimator = "boosting",
    features: dict[Literal["blur"], list[int]] | None = None,
    trees: int = 100,
    depth: int | None = None,
    pixels: int = 100_000,
) -> PixelModel:
    """Return an estimator of scikit-learn that looks at each pixel by itself, and at means around it.

    It learns from an epoch of patches at once: one stage with `schedule: {name: constant, epochs: 1}`, any `lr` and
    `keep: [last]` is what it needs.

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images.
        _task: the competition's.
        estimator: `linear` (ridge or logistic regression), `forest` or `boosting` (of histograms).
        features: `blur` names the sides, in pixels, of the squares whose means are features beside the channels; odd.
        trees: how many a forest has, or rounds of boosting.
        depth: of a tree at most; 12 of a forest and unlimited, with 31 leaves, of boosting by default.
        pixels: how many it is fitted to.

    Raises:
        ConfigError: a value is out of range.
    """
    blur = list((features or {}).get("blur", []))
    for side in blur:
        check_number("features.blur", side, "[3, 999]", whole=True)
        if side % 2 == 0:
            raise ConfigError(f"model.options.features.blur is {side}", "odd sides", "write `blur: [3, 7]`")
    check_number("trees", trees, "[1, 10000]", whole=True)
    check_number("pixels", pixels, "[2, 100000000]", whole=True)
    if depth is not None:
        check_number("depth", depth, "[1, 64]", whole=True)

    def fit(rows: np.ndarray, truth: np.ndarray, count: int, task: str) -> Arrays:
        return _FITS[estimator](rows, truth, count, task, trees=trees, depth=depth)

    return PixelModel(n_outputs, in_channels, fit=fit, task=_task, blur=blur, pixels=pixels)


def _targets(truth: np.ndarray, count: int, task: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what each output is fitted to, of those that are fitted one by one: known rows, and their truth."""
    known = [~np.isnan(truth[:, k]) for k in range(count)]
    return [(rows, truth[rows, k]) for k, rows in enumerate(known)]


def _linear(rows: np.ndarray, truth: np.ndarray, count: int, task: str, **_: Any) -> Arrays:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    scaled = scaler.transform(rows)
    weight, bias = np.zeros((count, rows.shape[1])), np.full(count, _NEVER if task in SEGMENTATION else 0.0)
    if exclusive(task, count):
        model = LogisticRegression(max_iter=300).fit(scaled, truth[:, 0].astype(int))
        known, coefficients, constants = model.classes_, model.coef_, model.intercept_
        if len(known) == 2:  # which one number tells apart
            coefficients, constants = np.r_[-coefficients / 2, coefficients / 2], np.r_[-constants / 2, constants / 2]
        weight[known], bias[known] = coefficients, constants
    else:
        for k, (some, real) in enumerate(_targets(truth, count, task)):
            if task not in SEGMENTATION and some.any():
                model = Ridge(1e-3).fit(scaled[some], real)
                weight[k], bias[k] = model.coef_, model.intercept_
            elif len(np.unique(real)) == 2:
                model = LogisticRegression(max_iter=300).fit(scaled[some], real)
                weight[k], bias[k] = model.coef_[0], model.intercept_[0]
            elif real.any():
                bias[k] = -_NEVER
    weight = weight / scaler.scale_
    return {"weight": weight.astype(np.float32), "bias": (bias - weight @ scaler.mean_).astype(np.float32)}


def _forest(rows: np.ndarray, truth: np.ndarray, count: int, task: str, *, trees: int, depth: int | None) -> Arrays:
    from sklearn.ensemble import RandomForestRegressor

    apart = exclusive(task, count)
    real = np.eye(count)[truth[:, 0].astype(int)] if apart else truth
    some = ~np.isnan(real).any(1)  # a forest of means of what is 0 or 1 is one of shares
    model = RandomForestRegressor(
        trees, max_depth=depth or 12, min_samples_leaf=2, max_features=1 / 3, random_state=0, n_jobs=1
    ).fit(rows[some], real[some] if count > 1 else real[some, 0])
    grown = []
    for one in model.estimators_:
        tree: Any = one.tree_
        leaf = tree.children_left < 0
        here = np.arange(tree.node_count)
        grown.append((
            np.where(leaf, 0, tree.feature), tree.threshold, np.where(leaf, here, tree.children_left),
            np.where(leaf, here, tree.children_right), tree.value.reshape(tree.node_count, count) / trees,
        ))  # fmt: skip
    return _stacked(grown)


def _boosting(rows: np.ndarray, truth: np.ndarray, count: int, task: str, *, trees: int, depth: int | None) -> Arrays:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options: dict[str, Any] = {
        "max_iter": trees, "max_depth": depth, "random_state": 0, "early_stopping": False, "learning_rate": 0.1,
    }  # fmt: skip
    bias, grown, column = np.full(count, _NEVER if task in SEGMENTATION else 0.0), list[Any](), list[int]()
    if exclusive(task, count):
        model = HistGradientBoostingClassifier(**options).fit(rows, truth[:, 0].astype(int))
        known = model.classes_.tolist()
        columns = known if len(known) > 2 else known[1:]  # of two, one number tells them apart
        bias[known] = 0.0
        bias[columns] = model._baseline_prediction.ravel()
        for several in model._predictors:
            grown += [_nodes(one) for one in several]
            column += columns
        return {**_stacked(grown), "bias": bias.astype(np.float32), "column": np.array(column, np.int64)}
    for k, (some, real) in enumerate(_targets(truth, count, task)):
        if task in SEGMENTATION and len(np.unique(real)) < 2:
            bias[k] = -_NEVER if real.any() else _NEVER
            continue
        kind = HistGradientBoostingClassifier if task in SEGMENTATION else HistGradientBoostingRegressor
        if some.any():
            single = kind(**options).fit(rows[some], real)
            bias[k] = float(single._baseline_prediction.ravel()[0])
            grown += [_nodes(one) for several in single._predictors for one in several]
            column += [k] * (len(grown) - len(column))
    learned: Arrays = {"bias": bias.astype(np.float32), "column": np.array(column, np.int64)}
    return {**_stacked(grown), **learned} if grown else {"bias": bias.astype(np.float32)}


def _nodes(predictor: Any) -> tuple[np.ndarray, ...]:
    """Return the nodes of a tree of boosting as `_stacked` takes them."""
    nodes = predictor.nodes
    leaf, here = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
    return (
        np.where(leaf, 0, nodes["feature_idx"]), nodes["num_threshold"], np.where(leaf, here, nodes["left"]),
        np.where(leaf, here, nodes["right"]), np.where(leaf, nodes["value"], 0.0)[:, None],
    )  # fmt: skip


def _stacked(grown: Sequence[tuple[np.ndarray, ...]]) -> Arrays:
    """Return trees as arrays [T, N], the shorter ones filled up; thresholds are those float32 tells apart alike."""
    most = max(len(one[0]) for one in grown)

    def filled(place: int, dtype: Any) -> np.ndarray:
        parts = [np.pad(one[place], [(0, most - len(one[0]))] + [(0, 0)] * (one[place].ndim - 1)) for one in grown]
        return np.stack(parts).astype(dtype)

    exact = filled(1, np.float64)
    threshold = exact.astype(np.float32)
    above = threshold.astype(np.float64) > exact
    threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
    return {
        "feature": filled(0, np.int64), "threshold": threshold, "left": filled(2, np.int64),
        "right": filled(3, np.int64), "value": filled(4, np.float32), "column": np.zeros(0, np.int64),
    }  # fmt: skip


_FITS: dict[str, Callable[..., Arrays]] = {"linear": _linear, "forest": _forest, "boosting": _boosting}
