import pytest

from calibrate.server.prometheus_text import parse, scrape, total_of
from catalogs.errors import InputError


def test_labels_escapes_and_special_values_are_read() -> None:
    text = '# TYPE a gauge\na{x="1,2",y="say \\"hi\\""} 3.5e2 1700000000\nb NaN\nc_bucket{le="+Inf"} 7\n'
    a, b, c = parse(text)
    assert a.labels == {"x": "1,2", "y": 'say \\"hi\\"'} and a.value == 350
    assert b.value != b.value and c.labels["le"] == "+Inf"


def test_series_of_one_metric_are_added_and_may_be_picked_by_label() -> None:
    samples = parse('m{engine="0"} 1\nm{engine="1"} 2\n')
    assert total_of(samples, "m") == 3 and total_of(samples, 'm{engine="1"}') == 2 and total_of(samples, "n") is None


def test_shares_of_several_engines_are_averaged_and_counts_added() -> None:
    found = scrape(
        'vllm:kv_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="1"} 0.7\n'
        'vllm:num_requests_running{engine="0"} 4\nvllm:num_requests_running{engine="1"} 5\n'
    )
    assert found is not None and found.gauges == {"kv_usage": pytest.approx(0.8), "num_running": 9}


@pytest.mark.parametrize(
    ("text", "engine", "gauges"),
    [
        ("vllm:num_requests_running 4\nvllm:gpu_cache_usage_perc 0.5", "vllm", {"num_running": 4, "kv_usage": 0.5}),
        ("sglang:num_queue_reqs 2\nsglang:cache_hit_rate 0.3", "sglang", {"num_waiting": 2, "prefix_hit_rate": 0.3}),
        ("tgi_batch_current_size 5", "tgi", {"num_running": 5}),
        ("trtllm_kv_cache_utilization 0.7", "tensorrt-llm", {"kv_usage": 0.7}),
        ('nv_trt_llm_request_metrics{request_type="active"} 6', "triton-tensorrt-llm", {"num_running": 6}),
    ],
)
def test_every_engines_names_become_ours(text: str, engine: str, gauges: dict[str, float]) -> None:
    found = scrape(text)
    assert found is not None and found.engine == engine and found.gauges == gauges


def test_a_histogram_gives_its_mean_between_two_scrapes() -> None:
    name = "vllm:inter_token_latency_seconds"
    before, after = scrape(f"{name}_sum 10\n{name}_count 100"), scrape(f"{name}_sum 13\n{name}_count 200")
    assert before is not None and after is not None
    assert after.means_since(before) == {"itl_s": pytest.approx(0.03)} and before.means_since(before) == {}


def test_other_text_is_no_engine_or_refused() -> None:
    assert scrape("go_goroutines 7") is None
    with pytest.raises(InputError, match="file:2"):
        parse("a 1\n<html>\n", "file")
