"""What physics leaves over where kernels jump: a boosted sum of symmetric trees that corrects log time.

Libraries switch kernels at edges of shape, tile and wave, so that the error of a smooth formula has steps. Each tree
asks ``DEPTH`` questions "feature >= edge", the same for all of a level (oblivious trees: Kohavi and Li 1995; boosted:
Prokhorenkova et al. 2018, CatBoost), and adds its leaf's value. Leaves are shrunken means of the error, weighted
against outliers (Huber 1964). Rows are drawn by whole groups of shapes, features at random, by a fixed seed: the same
data gives the same trees.

A stored model is small: the features by name with how many edges each has; then, deflated and in base 85, the edges
(float32), the questions (feature, edge: bytes) and the leaves (signed bytes, in steps of ``UNIT``).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
NUM_TREES = 240
DEPTH = 7
SHRINKAGE = 0.2
RIDGE = 5.0  # rows' worth of pull to no correction in each leaf
LOSS_WIDTH = 0.05  # log error beyond which a row counts as an outlier
NUM_EDGES = 32  # a feature
ROW_SHARE, FEATURE_SHARE = 0.7, 0.3  # drawn for each tree
UNIT = 0.001  # of log time, in which leaves are stored
LARGEST = 127  # UNITs of one leaf


def fit_trees(
    features: Mapping[str, FloatArray], log_error: FloatArray, groups: NDArray[Any], num_trees: int = NUM_TREES
) -> dict[str, Any]:
    """The trees that best explain ``log_error`` (log measured - log physics).

    Args:
        features: by name, (n,) each. log_error: (n,). groups: (n,) keys of the shapes that belong together.
    """
    rng = np.random.default_rng(0)
    names = [name for name, x in features.items() if len(np.unique(x)) > 1]
    edges = [_edges(features[name]) for name in names]
    codes = np.stack([_code(e, features[n]) for n, e in zip(names, edges, strict=True)])
    num_edges, grow = np.asarray([len(e) for e in edges]), _compiled_grow()
    members, group = np.unique(groups, return_inverse=True)
    fitted = np.zeros(len(log_error))
    questions = np.zeros((num_trees, DEPTH, 2), dtype=np.uint8)
    leaves = np.zeros((num_trees, 1 << DEPTH), dtype=np.int8)
    for tree in range(num_trees):
        left = log_error - fitted
        weight = 1.0 / np.maximum(1.0, np.abs(left) / LOSS_WIDTH)
        rows = np.flatnonzero((rng.random(len(members)) < ROW_SHARE)[group])
        chosen = rng.permutation(len(names))[: max(2, round(FEATURE_SHARE * len(names)))]
        if len(rows) == 0:
            continue
        pull = weight * left
        questions[tree], place = grow(codes[:, rows], num_edges, chosen, pull[rows], weight[rows], DEPTH, RIDGE)
        total = np.bincount(place, pull[rows], 1 << DEPTH)
        value = SHRINKAGE * total / (np.bincount(place, weight[rows], 1 << DEPTH) + RIDGE)
        leaves[tree] = np.clip(np.round(value / UNIT), -LARGEST, LARGEST)
        fitted += leaves[tree][_leaf(codes, questions[tree])] * UNIT
    return {
        "features": {name: len(e) for name, e in zip(names, edges, strict=True)},
        "depth": DEPTH,
        "unit_log": UNIT,
        "edges": _packed(np.concatenate(edges).tobytes()),
        "questions": _packed(questions.tobytes()),
        "leaves": _packed(leaves.tobytes()),
    }


def _edges(values: FloatArray) -> NDArray[np.float32]:
    """Between the values, or where there are many between their quantiles; single precision, as they are stored."""
    known = np.unique(values)
    if len(known) > NUM_EDGES:
        between = np.quantile(values, np.linspace(0.0, 1.0, NUM_EDGES + 1)[1:-1])
    else:
        between = (known[1:] + known[:-1]) / 2.0
    return np.unique(between.astype(np.float32))


def _grow(
    codes: NDArray[np.uint8], num_edges: NDArray[np.int64], chosen: NDArray[np.int64], pull: FloatArray,
    weight: FloatArray, depth: int, ridge: float,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # fmt: skip
    """A tree's questions, level by level, by the squared pull that their leaves explain, and each row's leaf.

    Plain loops: numba compiles it.
    """
    questions = np.zeros((depth, 2), dtype=np.uint8)
    place = np.zeros(codes.shape[1], dtype=np.int64)
    for level in range(depth):
        num_leaves, best = 1 << level, -1.0
        for feature in chosen:
            width = num_edges[feature] + 1
            pulls, weights = np.zeros((num_leaves, width)), np.zeros((num_leaves, width))
            for row in range(codes.shape[1]):
                pulls[place[row], codes[feature, row]] += pull[row]
                weights[place[row], codes[feature, row]] += weight[row]
            gains = np.zeros(width)
            for leaf in range(num_leaves):
                below, under = 0.0, 0.0
                whole, total = pulls[leaf].sum(), weights[leaf].sum()
                for edge in range(width - 1):
                    below += pulls[leaf, edge]
                    under += weights[leaf, edge]
                    above = whole - below
                    gains[edge] += below * below / (under + ridge) + above * above / (total - under + ridge)
            for edge in range(width - 1):
                if gains[edge] > best:
                    best = gains[edge]
                    questions[level, 0], questions[level, 1] = feature, edge
        for row in range(codes.shape[1]):
            place[row] = 2 * place[row] + (codes[questions[level, 0], row] > questions[level, 1])
    return questions, place


@cache
def _compiled_grow() -> Any:
    import numba

    return numba.njit(_grow)


def _code(edges: Any, values: FloatArray) -> NDArray[np.uint8]:
    """How many edges each value has reached."""
    return np.searchsorted(edges, values, side="right").astype(np.uint8)


def _leaf(codes: NDArray[np.uint8], questions: NDArray[np.uint8]) -> NDArray[np.int64]:
    place = np.zeros(codes.shape[1], dtype=np.int64)
    for feature, edge in questions:
        place = 2 * place + (codes[feature] > edge)
    return place


def evaluate(trees: Mapping[str, Any], features: Mapping[str, FloatArray]) -> FloatArray:
    """Log correction at ``features`` (by name, of one shape); beyond the outermost edges the last one holds."""
    depth = int(trees["depth"])
    asked, which, leaves = _stored(trees["questions"], trees["leaves"], depth)
    edges = np.split(_stored_edges(trees["edges"]), np.cumsum(list(trees["features"].values()))[:-1])
    shape = np.shape(next(iter(features.values())))
    codes = np.stack([_code(e, np.ravel(features[name])) for e, name in zip(edges, trees["features"], strict=True)])
    answers = (codes[asked[:, 0]] > asked[:, 1, None]).view(np.uint8)  # (different questions, n)
    place = np.zeros((len(leaves), codes.shape[1]), dtype=np.uint8)
    for level in range(depth):
        np.left_shift(place, 1, out=place)
        np.bitwise_or(place, answers[which[:, level]], out=place)
    added = leaves[np.arange(len(leaves))[:, None], place].sum(axis=0, dtype=np.int32)
    return np.asarray(added.reshape(shape) * float(trees["unit_log"]))


@cache
def _stored_edges(text: str) -> FloatArray:
    return np.frombuffer(_unpacked(text), dtype=np.float32).astype(np.float64)


@cache
def _stored(questions: str, leaves: str, depth: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int8]]:
    """(different questions, which of them each tree asks at each level, leaves of each tree)."""
    pairs = np.frombuffer(_unpacked(questions), dtype=np.uint8).reshape(-1, 2)
    asked, which = np.unique(pairs, axis=0, return_inverse=True)
    return asked, which.reshape(-1, depth), np.frombuffer(_unpacked(leaves), dtype=np.int8).reshape(-1, 1 << depth)


def _packed(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data, 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
