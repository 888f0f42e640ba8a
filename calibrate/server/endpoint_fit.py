"""Learns a server's step time and per-request overhead from what clients saw.

Tokens that come together are a step's (``engine_steps.py``), so its duration, its sequences and the prompts in it are
known; a lone request's TTFT is the overhead plus the steps of its own prompt. The coefficients of
``endpoint_step.StepFit`` follow by least squares on the logarithm of durations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibrate.endpoint_step import StepFit
from calibrate.server.endpoint_client import Reply
from calibrate.server.engine_steps import engine_steps
from calibrate.server.load_points import LoadPoint
from catalogs.errors import InputError

FloatArray = NDArray[np.float64]
POWERS = (1.0, 2.0, 4.0)
LEAST_OBSERVATIONS = 3
MOST_PLAIN_STEPS = 60  # decode-only steps of one load point that the fit looks at
GOOD_ENOUGH = 0.03  # mean error below which no further term is looked for
WORTH_A_TERM = 0.7  # of the cost without it: a term that few servers have must earn its place


@dataclass(frozen=True)
class Steps:
    """``num`` like steps: prefill tokens in each and their mean context, decoding sequences and theirs."""

    num: float
    prefill_tokens: float
    prefill_context: float
    num_decode: float
    decode_context: float


@dataclass(frozen=True)
class Observation:
    """A duration that is a sum of steps; ``ttft`` adds the overhead of a request. ``point`` is its load point."""

    kind: Literal["ttft", "decode"]
    duration_s: float
    steps: tuple[Steps, ...]
    point: int


@dataclass(frozen=True)
class Fitted:
    """The fit, and how far off it is on load points that it did not see (relative, by point and metric)."""

    fit: StepFit
    errors: tuple[tuple[int, str, float], ...]

    def error_of(self, kind: str) -> dict[str, float | int | None]:
        """Median, p90 and worst absolute error of a metric over left-out points."""
        values = np.array([abs(e) for _, k, e in self.errors if k == kind])
        if not values.size:
            return {"median": None, "p90": None, "worst": None, "num_points": 0}
        return {
            "median": float(np.median(values)),
            "p90": float(np.quantile(values, 0.9)),
            "worst": float(values.max()),
            "num_points": int(values.size),
        }


def observations_of(replies: Sequence[Reply], point: int, chunk_tokens: int) -> list[Observation]:
    """Observations of one load point's replies: every step that can be told, and TTFTs of requests that were alone."""
    good = [r for r in replies if r.ok]
    found = []
    told = [s for s in engine_steps(good, chunk_tokens) if s.duration_s and s.decoding]
    mixed = [s for s in told if s.prefill_tokens]  # few and telling: all of them; of the others, evenly picked ones
    plain = [s for s in told if not s.prefill_tokens]
    for step in [*mixed, *plain[:: 1 + len(plain) // MOST_PLAIN_STEPS]]:
        if step.duration_s:
            num = float(len(step.decoding))
            context = sum(c for _, c in step.decoding) / num
            keys = step.prefill_keys / step.prefill_tokens if step.prefill_tokens else 0.0
            shape = Steps(1.0, step.prefill_tokens, keys, num, context)
            found.append(Observation("decode", step.duration_s, (shape,), point))
    for reply in good:
        if not reply.input_tokens:  # a server that counts none
            continue
        others = (o for o in good if o is not reply)
        if not any(o.sent_at_s < reply.token_at_s[0] and o.finish_at_s > reply.sent_at_s for o in others):
            found.append(Observation("ttft", reply.ttft_s, prompt_steps(reply.input_tokens, chunk_tokens), point))
    return found


def prompt_steps(tokens: float, chunk_tokens: int, num_decode: float = 0.0, context: float = 0.0) -> tuple[Steps, ...]:
    """The steps in which a prompt is computed, a chunk in each, beside some decoding sequences."""
    steps = []
    done = 0.0
    while done < tokens:
        chunk = min(float(chunk_tokens), tokens - done)
        steps.append(Steps(1.0, chunk, done + chunk / 2, num_decode, context))
        done += chunk
    return tuple(steps)


def observations_of_points(points: Iterable[LoadPoint], chunk_tokens: int) -> list[Observation]:
    """Observations of aggregate results: a mean decode step at each load, and TTFT where one request ran at a time."""
    found = []
    for index, point in enumerate(points):
        num, tpot = point.in_flight, point.tpot_s.get("mean", point.tpot_s.get("p50"))
        if num and tpot and point.output_tokens > 1:
            context = point.input_tokens + point.output_tokens / 2
            prompts_a_step = num / point.output_tokens  # each request brings one prompt for its output's steps
            mixed = prompt_steps(point.input_tokens, chunk_tokens, num, context)
            scaled = tuple(replace(s, num=prompts_a_step * s.num) for s in mixed)
            taken = sum(s.num for s in scaled)
            if taken > 1.0:
                tokens = sum(s.num * s.prefill_tokens for s in scaled)
                scaled, taken = (Steps(1.0, tokens, point.input_tokens / 2, num, context),), 1.0
            steps = (Steps(1.0 - taken, 0.0, 0.0, num, context), *scaled)
            found.append(Observation("decode", tpot, steps, index))
        ttft = point.ttft_s.get("p50", point.ttft_s.get("mean"))
        if num is not None and num <= 1.0 and ttft and point.input_tokens > 0:
            found.append(Observation("ttft", ttft, prompt_steps(point.input_tokens, chunk_tokens), index))
    return found


def fit_step(observations: Sequence[Observation], left_out: bool = True) -> Fitted:
    """Fit the coefficients; then leave each load point out once and predict it.

    Raises:
        InputError: too few observations, or none of a kind that is needed.
    """
    kinds = {o.kind for o in observations}
    if len(observations) < LEAST_OBSERVATIONS or "decode" not in kinds:
        raise InputError(
            f"{len(observations)} usable observations ({', '.join(sorted(kinds)) or 'none'})",
            why=f"a step time needs at least {LEAST_OBSERVATIONS}, decode phases of two tokens and more among them",
            remedy="measure at more loads and with more output tokens, and at concurrency 1 for the overhead",
        )
    best, cost = min((_fit(observations, power) for power in POWERS), key=lambda found: found[1])
    crossed, cost_crossed = _fit(observations, best.power, crossed=True)
    plain_errors = np.abs(predicted_s(best, observations) / np.array([o.duration_s for o in observations]) - 1.0)
    if cost_crossed < WORTH_A_TERM * cost and np.mean(plain_errors) > GOOD_ENOUGH:
        best = crossed
    errors: list[tuple[int, str, float]] = []
    points = sorted({o.point for o in observations})
    if left_out and len(points) >= LEAST_OBSERVATIONS:
        for point in points:
            seen = [o for o in observations if o.point != point]
            if {o.kind for o in seen} == kinds:
                errors += _errors(
                    _fit(seen, best.power, best.decode_keys_s + best.prefill_keys_s > 0)[0],
                    [o for o in observations if o.point == point],
                    point,
                )
    return Fitted(best, tuple(errors))


def _errors(fit: StepFit, unseen: Sequence[Observation], point: int) -> list[tuple[int, str, float]]:
    errors = []
    for kind in ("ttft", "decode"):
        own = [o for o in unseen if o.kind == kind]
        if own:
            told = predicted_s(fit, own).sum()
            errors.append((point, kind, float(told / sum(o.duration_s for o in own) - 1.0)))
    return errors


def predicted_s(fit: StepFit, observations: Sequence[Observation]) -> FloatArray:
    """Seconds of each observation by the fit."""
    return _Rows(observations).durations(_parameters(fit), fit.power)


class _Rows:
    """All steps of all observations as columns."""

    def __init__(self, observations: Sequence[Observation]) -> None:
        flat = [
            (i, s.num, s.prefill_tokens, s.prefill_context, s.num_decode, s.decode_context)
            for i, o in enumerate(observations)
            for s in o.steps
        ]
        columns = np.array(flat, dtype=np.float64).T
        self.owner = columns[0].astype(np.int64)
        self.num, self.prefill, prompt_context, self.decode, self.context = columns[1:]
        self.prefill_keys = self.prefill * prompt_context
        ends = np.where(self.prefill > 0, np.maximum(self.prefill, prompt_context + self.prefill / 2), 0.0)
        keys = self.decode * self.context + ends
        self.decode_keys, self.prefill_all_keys = self.decode * keys, self.prefill * keys
        self.is_ttft = np.array([o.kind == "ttft" for o in observations], dtype=np.float64)

    def positive(self) -> FloatArray:
        """Prefill tokens, 1 where there are none."""
        return np.asarray(np.maximum(self.prefill, 1.0))

    def durations(self, x: FloatArray, power: float) -> FloatArray:
        floor, token, decode, decode_context, prefill_context, decode_keys, prefill_keys, overhead = x
        tokens = (self.prefill + self.decode) * token
        step = (floor**power + tokens**power) ** (1.0 / power)
        step = step + self.decode * (decode + self.context * decode_context) + self.prefill_keys * prefill_context
        step = step + self.decode_keys * decode_keys + self.prefill_all_keys * prefill_keys
        sums = np.bincount(self.owner, weights=self.num * step, minlength=self.is_ttft.size)
        return np.asarray(sums + self.is_ttft * overhead)


def _fit(observations: Sequence[Observation], power: float, crossed: bool = False) -> tuple[StepFit, float]:
    """(fit, cost) at one power; ``crossed``: with the term of attention over all keys of a batch.

    Coefficients stay >= 0 by fitting their logarithms from a small start.
    """
    from scipy.optimize import least_squares

    rows = _Rows(observations)
    measured = np.array([o.duration_s for o in observations])
    one_step = min(o.duration_s / sum(s.num for s in o.steps) for o in observations)
    tokens = max(float(rows.prefill.max()), 1.0)
    keys = max(float((rows.context * rows.decode).max()), 1.0)
    square = max(float(rows.prefill_keys.max()), 1.0)
    crossed_keys = [0.05 / max(float(k.max()), 1.0) for k in (rows.decode_keys, rows.prefill_all_keys)]
    start = np.array([0.6, 0.5 / tokens, 0.05, 0.05 / keys, 0.05 / square, *crossed_keys, 0.2]) * one_step

    decodes, prefills = float(rows.decode.max() > 0), float(rows.prefill.max() > 0)
    varied = float(np.unique(rows.prefill_keys).size > 2 and np.unique(rows.prefill_keys / rows.positive()).size > 1)
    terms = [1.0, 1.0, decodes, decodes, prefills * varied, crossed * decodes, crossed * prefills]
    used = np.array([*terms, float(rows.is_ttft.max())])  # what the observations hold nothing of stays 0
    # weigh load points alike, however many requests each had; and the two kinds of observation alike
    groups = [(o.point, o.kind) for o in observations]
    counts = {g: groups.count(g) for g in set(groups)}
    weights = np.array([counts[g] ** -0.5 for g in groups])

    def misfit(logs: FloatArray) -> FloatArray:
        return np.asarray(weights * np.log(rows.durations(np.exp(logs) * used, power) / measured))

    bounds = (np.log(start) - 12.0, np.log(start) + 8.0)
    found = least_squares(misfit, np.log(start), bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=100)
    values = np.exp(found.x) * used
    negligible = values < start * 1e-4  # at the lower bound: the data do not show the term
    values = np.where(negligible, 0.0, values)
    *steps, overhead = map(float, values)
    return StepFit(*steps, power=power, request_overhead_s=overhead), float(found.cost)  # type: ignore[misc]


def _parameters(fit: StepFit) -> FloatArray:
    return np.array(
        [
            fit.floor_s,
            fit.token_s,
            fit.decode_s,
            fit.decode_context_s,
            fit.prefill_context_s,
            fit.decode_keys_s,
            fit.prefill_keys_s,
            fit.request_overhead_s,
        ]
    )
