"""Corrections by symmetric trees: what they learn, that they store small and exactly, and hold beyond their edges."""

import json

import numpy as np
import pytest

from calibrate.physics import trees


def shapes(num: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = {"m": rng.uniform(0, 12, num), "n": rng.uniform(5, 16, num), "same": np.ones(num)}
    jumps = 0.2 * (features["m"] >= 7) - 0.1 * (features["n"] >= 10) * (features["m"] < 3)
    return features, jumps, np.floor(features["n"] * 8)


def test_trees_find_jumps_and_predict_them_on_shapes_that_they_did_not_see():
    features, jumps, groups = shapes(4000, 0)
    noise = 0.01 * np.random.default_rng(1).standard_normal(4000)
    outliers = np.where(np.random.default_rng(2).random(4000) < 0.03, 1.0, 0.0)
    found = trees.fit_trees(features, jumps + noise + outliers, groups)
    unseen, truth, _ = shapes(2000, 3)
    error = np.abs(trees.evaluate(found, unseen) - truth)
    assert np.median(error) < 0.01 and np.quantile(error, 0.9) < 0.03
    assert "same" not in found["features"]


def test_the_same_data_gives_the_same_small_json_which_reads_back_exactly():
    features, jumps, groups = shapes(2000, 0)
    found = trees.fit_trees(features, jumps, groups)
    text = json.dumps(found)
    assert text == json.dumps(trees.fit_trees(features, jumps, groups))
    assert len(text) < 40_000
    assert (trees.evaluate(json.loads(text), features) == trees.evaluate(found, features)).all()


def test_beyond_the_outermost_edges_the_correction_holds_and_shapes_are_kept():
    features, jumps, groups = shapes(2000, 0)
    found = trees.fit_trees(features, jumps, groups)
    far = {"m": np.array([[13.0, 40.0], [13.0, 1e6]]), "n": np.full((2, 2), 11.0)}
    held = trees.evaluate(found, far)
    assert held.shape == (2, 2) and np.ptp(held) == 0.0
    assert held[0, 0] == pytest.approx(0.2, abs=0.02)


def test_without_an_error_there_is_no_correction():
    features, _, groups = shapes(500, 0)
    found = trees.fit_trees(features, np.zeros(500), groups, num_trees=5)
    assert not trees.evaluate(found, features).any()
