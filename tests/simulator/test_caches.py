"""Caches keep what their policy keeps, for as long as it says, and count what they save."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs.errors import InputError
from simulator.fleet.caches import Caches, ResultCache, ResultCacheConfig, SemanticCacheConfig, prompt_keys
from simulator.workload.requests import Requests


def requests(n: int, **more: object) -> Requests:
    ones = np.ones(n, np.int64)
    return Requests(np.arange(n, dtype=float), 100 * ones, 10 * ones, **more)  # type: ignore[arg-type]


def test_lru_forgets_the_one_used_longest_ago_and_lfu_the_one_used_least() -> None:
    lru = ResultCache(ResultCacheConfig(max_entries=2))
    lfu = ResultCache(ResultCacheConfig(max_entries=2, policy="lfu"))
    for cache in (lru, lfu):
        cache.put(1, 0.0)
        cache.put(2, 1.0)
        assert cache.get(1, 2.0) and cache.get(1, 3.0) and cache.get(2, 4.0)
        cache.put(3, 5.0)
        assert len(cache) == 2
    assert not lru.get(1, 6.0) and lru.get(2, 6.0)
    assert lfu.get(1, 6.0) and not lfu.get(2, 6.0)


def test_answers_expire() -> None:
    cache = ResultCache(ResultCacheConfig(ttl_s=10.0))
    cache.put(1, 0.0)
    assert cache.get(1, 10.0) and not cache.get(1, 10.1) and len(cache) == 0


def test_prompts_are_equal_where_their_blocks_and_lengths_are() -> None:
    blocks = requests(3, hash_offsets=np.array([0, 2, 4, 6]), hash_ids=np.array([1, 2, 1, 2, 1, 3]))
    assert prompt_keys(blocks, None, 1.0, 0).tolist() == [0, 0, 1]
    drawn = prompt_keys(requests(20000), 100, 1.0, 0)
    counts = np.bincount(drawn, minlength=100)
    assert counts[0] / counts[9] == pytest.approx(10.0, rel=0.25)
    with pytest.raises(InputError, match="which prompts are equal"):
        prompt_keys(requests(3), None, 1.0, 0)


def test_an_answer_is_given_only_after_it_was_made() -> None:
    caches = Caches(requests(4), 0, result=ResultCacheConfig(lookup_s=0.01), num_prompts=1)
    assert caches.ask(0, 0.0) == (False, 0.01)
    assert caches.ask(1, 1.0) == (False, 0.01)
    caches.ended(0, 2.0)
    assert caches.ask(2, 3.0) == (True, 0.01)
    count = caches.counts["result"]
    assert (count.lookups, count.hits, count.input_tokens_saved, count.output_tokens_saved) == (3, 1, 100, 10)
    assert count.hit_rate == pytest.approx(1 / 3)


def test_a_semantic_cache_hits_and_errs_as_its_curve_says() -> None:
    config = SemanticCacheConfig(0.85, ((0.8, 0.6, 0.04), (0.9, 0.4, 0.02)), lookup_s=0.02)
    assert config.rates() == pytest.approx((0.5, 0.03))
    caches = Caches(requests(20000), 0, semantic=config)
    hits = [caches.ask(i, float(i)) for i in range(20000)]
    assert np.mean([h for h, _ in hits]) == pytest.approx(0.5, abs=0.02)
    assert caches.counts["semantic"].false_hits / 20000 == pytest.approx(0.03, abs=0.005)
    assert hits[0][1] == 0.02


@pytest.mark.parametrize("curve", [(), ((0.8, 0.6, 0.04),), ((0.8, 0.2, 0.4), (0.9, 0.1, 0.0))])
def test_curves_that_do_not_reach_or_make_no_sense_are_refused(curve: tuple[tuple[float, float, float], ...]) -> None:
    with pytest.raises(InputError, match="curve"):
        SemanticCacheConfig(0.85, curve).rates()
