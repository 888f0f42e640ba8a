"""A server whose step time is known: what its profile predicts by simulation is what its clients saw."""

import json
from pathlib import Path

import pytest

from calibrate.profiles import profile_to_dict
from calibrate.server.endpoint import endpoint_profile, fit_points
from calibrate.server.load_points import summarise
from simulator.server_check import check, requests_of, scenario_of, summary
from tests.calibrate.test_endpoint import served


def test_unseen_loads_of_a_known_server_are_predicted(tmp_path: Path) -> None:
    learned = [(1, 64), (1, 1024), (8, 512), (32, 512)]
    points = [summarise(served(c, n, 64, max(6, 4 * c)), c) for c, n in learned]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile_to_dict(endpoint_profile("p", fit_points(points, 512), points, {}))))
    engine = {"max_num_seqs": 64, "max_num_batched_tokens": 512, "block_size": 16, "num_gpu_blocks": 8192,
              "enable_prefix_caching": False}  # fmt: skip
    replies = [served(16, 256, 64, 48)]
    rows = check(scenario_of("llama-3.1-8b", "L4", str(path), engine), [summarise(replies[0], 16)], replies)
    errors = summary(rows)
    assert errors["tpot_s"]["worst"] < 0.2 and errors["output_tokens_per_s"]["worst"] < 0.2


def test_a_load_becomes_the_same_requests() -> None:
    replies = served(2, 64, 4, 6)
    closed, opened = requests_of(replies, 2), requests_of(replies, None)
    assert closed.concurrency == 2 and len(closed) == 6
    assert opened.arrival_s[0] == 0.0 and (opened.arrival_s[1:] >= opened.arrival_s[:-1]).all()
    assert opened.input_tokens.tolist() == [64] * 6 and opened.output_tokens.tolist() == [4] * 6
    with pytest.raises(ValueError, match="gpu"):
        scenario_of("llama-3.1-8b", "L4", "p.json", {"gpu": 1})
