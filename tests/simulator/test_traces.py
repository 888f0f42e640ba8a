"""Traces are read right in every form, and a bad one is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs.errors import InputError
from simulator.workload.requests import Requests
from simulator.workload.trace_writing import write_trace
from simulator.workload.traces import TraceReader, read_lengths, read_trace, take
from tests.shared_data import shared_data

HEADER = "arrival_s,input_tokens,output_tokens\n"


def trace_file(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def some_requests() -> Requests:
    return Requests(
        arrival_s=np.array([0.0, 0.5, 0.5]),
        input_tokens=np.array([1000, 40, 1100]),
        output_tokens=np.array([5, 0, 7]),
        hash_offsets=np.array([0, 2, 2, 5]),
        hash_ids=np.array([1, 2, 1, 2, 3]),
        request_class=np.array([0, 1, 0]),
        class_names=("chat", "batch, nightly"),
        session=np.array([7, 8, 7]),
    )


def test_the_contracts_csv_is_read(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,hash_ids,request_class,session\n"
    text += "0.25,1000,10,4 5,chat,a\n1,20,0,,batch,b\n1,1030,2,4 5 6,chat,a\n"
    requests = read_trace(trace_file(tmp_path, text))
    assert requests.arrival_s.tolist() == [0.25, 1, 1]
    assert requests.input_tokens.tolist() == [1000, 20, 1030]
    assert requests.hash_offsets is not None and requests.hash_offsets.tolist() == [0, 2, 2, 5]
    assert requests.hash_ids is not None and requests.hash_ids.tolist() == [4, 5, 4, 5, 6]
    assert requests.class_names == ("chat", "batch")
    assert requests.request_class is not None and requests.request_class.tolist() == [0, 1, 0]
    assert requests.session is not None and requests.session.tolist() == [0, 1, 0]
    assert requests.hash_block_tokens == 512


def test_azure_clock_is_read_relative_to_its_first_row(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    plain = head + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    zoned = head + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
    assert read_trace(trace_file(tmp_path, plain)).arrival_s == pytest.approx([0, 4.314579])
    assert read_trace(trace_file(tmp_path, zoned)).arrival_s == pytest.approx([0, 0.007405])


def test_burstgpt_failures_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,0,0,0,API log\n118,GPT-4,417,276,693,API log\n"
    requests = read_trace(trace_file(tmp_path, text))
    assert requests.arrival_s.tolist() == [5, 118]
    assert requests.class_names[1] == "API log"
    assert "1 failed request" in caplog.text


def test_mooncake_json_lines_are_read_in_milliseconds(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 1025, "output_length": 3, "hash_ids": [0, 1, 2]},
            {"timestamp": 1500, "input_length": 512, "output_length": 4, "hash_ids": [0]}]  # fmt: skip
    path = trace_file(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "t.jsonl")
    requests = read_trace(path)
    assert requests.arrival_s.tolist() == [0, 1.5]
    assert requests.hash_ids is not None and requests.hash_ids.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    before = some_requests()
    write_trace(before, tmp_path / name)
    after = read_trace(tmp_path / name)
    for field in ("arrival_s", "input_tokens", "output_tokens", "hash_offsets", "hash_ids", "request_class"):
        assert np.array_equal(getattr(before, field), getattr(after, field)), field
    assert after.class_names == before.class_names
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_gzip_is_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress((HEADER + "0,1,1\n").encode()))
    assert len(read_trace(path)) == 1


def test_floats_that_are_whole_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    assert read_trace(trace_file(tmp_path, "\ufeff" + HEADER + "0,374.0,1e2\n\n")).output_tokens.tolist() == [100]


def test_seconds_since_1970_become_seconds_since_the_first(tmp_path: Path) -> None:
    assert read_trace(trace_file(tmp_path, HEADER + "1700000000.5,1,1\n1700000001,1,1\n")).arrival_s.tolist() == [
        0,
        0.5,
    ]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "t.csv", "is empty"),
        ("\n\n", "t.csv", "is empty"),
        (HEADER, "t.csv", "no requests"),
        (HEADER + "0,10,5\n-1,10,5\n", "t.csv:3", "negative"),
        (HEADER + "0,10,5\n\n1,10,5\n0.5,10,5\n", "t.csv:5", "before the row above"),
        (HEADER + "0,10,5\n1,-10,5\n", "t.csv:3", "below 1"),
        (HEADER + "0,0,5\n", "t.csv:2", "below 1"),
        (HEADER + "0,10,-5\n", "t.csv:2", "below 0"),
        (HEADER + "nan,10,5\n", "t.csv:2", "not a number"),
        (HEADER + "inf,10,5\n", "t.csv:2", "not a number"),
        (HEADER + "0,NaN,5\n", "t.csv:2", "not a number"),
        (HEADER + "0,,5\n", "t.csv:2", "is empty"),
        (HEADER + "0,ten,5\n", "t.csv:2", "'ten' is not a number"),
        (HEADER + "0,10.5,5\n", "t.csv:2", "not a whole number"),
        (HEADER + "0,10,999999999999\n", "t.csv:2", "above 16,000,000"),
        (HEADER + "0,10\n", "t.csv:2", "2 fields where the header has 3"),
        (HEADER + "0,10,5,6\n", "t.csv:2", "4 fields where the header has 3"),
        ("arrival,input_tokens,output_tokens\n0,1,1\n", "t.csv:1", "no column arrival_s"),
        ("a;b;c\n0;1;1\n", "t.csv:1", "commas"),
        ("arrival_s,input_tokens,output_tokens,arrival_s\n0,1,1,0\n", "t.csv:1", "twice"),
        ("arrival_s,input_tokens,output_tokens,hash_ids\n0,1,1,a b\n", "t.csv:2", "hash_ids"),
        ("arrival_s,input_tokens,output_tokens,hash_ids\n0,1,1,\u00b2\n", "t.csv:2", "hash_ids"),
        ("arrival_s,input_tokens,output_tokens,hash_ids\n0,1,1,--5\n", "t.csv:2", "hash_ids"),
        ("arrival_s,input_tokens,output_tokens,hash_ids\n0,1,1," + 5000 * "7" + "\n", "t.csv:2", "hash_ids"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,1\nyesterday,1,1\n", "t.csv:3", "date"),
        ('{"timestamp": 0, "input_length": 1}\n', "t.csv:1", "no column output_length"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timest\n', "t.csv:2", "not JSON"),
        ("[1, 2]\n", "t.csv:1", "not a JSON object"),
        ("PK\x03\x04zip", "t.csv", "zip archive"),
        ("a\0b", "t.csv", "binary"),
        ("\x1f\x8bnot gzip", "t.csv", "gzip"),
        ("PAR1 not parquet", "t.csv", "Parquet"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1") if "\x8b" in text else text.encode())
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert what in caught.value.what
    assert caught.value.where.endswith(where)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    trace_file(tmp_path, HEADER, "requests.csv")
    with pytest.raises(InputError, match=r"requests\.csv"):
        read_trace(tmp_path / "request.csv")
    with pytest.raises(InputError, match="folder"):
        read_trace(tmp_path)


def test_a_gzip_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress((HEADER + "".join(f"{i},{i % 977 + 1},5\n" for i in range(100_000))).encode())
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"t\.csv\.gz"):
        read_trace(tmp_path / "t.csv.gz")


def test_an_unsorted_trace_is_sorted_on_request_only(tmp_path: Path) -> None:
    path = trace_file(tmp_path, HEADER + "2,3,3\n0,1,1\n2,4,4\n1,2,2\n")
    with pytest.raises(InputError, match="--sort"):
        read_trace(path)
    requests = read_trace(path, sort=True)
    assert requests.arrival_s.tolist() == [0, 1, 2, 2]
    assert requests.input_tokens.tolist() == [1, 2, 3, 4]


def test_a_file_is_read_in_pieces_and_only_as_far_as_asked(tmp_path: Path) -> None:
    path = trace_file(tmp_path, HEADER + "".join(f"{i},{i % 977 + 1},5\n" for i in range(1_000_000)))
    sizes = [len(piece) for piece in TraceReader(path)]
    assert sum(sizes) == 1_000_000 and len(sizes) > 1
    assert len(read_trace(path, limit=1234)) == 1234


def test_an_error_deep_in_a_long_file_names_its_line(tmp_path: Path) -> None:
    rows = [f"{i},{i % 977 + 1},5\n" for i in range(900_000)]
    rows[800_000] = "1,1,1\n"
    with pytest.raises(InputError, match=r"t\.csv:800002"):
        read_trace(trace_file(tmp_path, HEADER + "".join(rows)))


def test_hash_blocks_smaller_than_512_are_recognised_by_their_number(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,hash_ids\n0,64,1,1 2 3 4\n0,40,1,1 2 3\n"
    assert read_trace(trace_file(tmp_path, text)).hash_block_tokens == 16


def test_lengths_are_read_from_a_file_without_arrivals(tmp_path: Path) -> None:
    inputs, outputs = read_lengths(trace_file(tmp_path, HEADER + ",10,5\n,20,6\n"))
    assert (inputs.tolist(), outputs.tolist()) == ([10, 20], [5, 6])
    with pytest.raises(InputError):
        read_lengths(trace_file(tmp_path, HEADER + ",10,\n"))
    with pytest.raises(InputError, match="every request in it failed"):
        read_lengths(trace_file(tmp_path, "Timestamp,Request tokens,Response tokens\n0,10,0\n"))
    pq.write_table(pa.table({"input_tokens": [[1]], "output_tokens": [[1]]}), tmp_path / "lists.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_lengths(tmp_path / "lists.parquet")


def test_taking_rows_takes_their_blocks() -> None:
    taken = take(some_requests(), np.array([2, 1, 0, 0]))
    assert taken.hash_offsets is not None and taken.hash_offsets.tolist() == [0, 3, 3, 5, 7]
    assert taken.hash_ids is not None and taken.hash_ids.tolist() == [1, 2, 3, 1, 2, 1, 2]


def test_the_published_traces_have_the_published_means() -> None:
    azure = read_trace(shared_data("traces/azure_llm_2023_conv.csv"))
    assert (len(azure), round(azure.input_tokens.mean()), round(azure.output_tokens.mean())) == (19366, 1155, 211)
    mooncake = read_trace(shared_data("traces/mooncake_conversation.csv"))
    assert (len(mooncake), round(mooncake.input_tokens.mean())) == (12031, 12035)
    assert len(read_lengths(shared_data("traces/arxiv_summarization_lengths.csv"))[0]) == 28257
