"""Times all-reduce and send-receive among the GPUs of this machine (nccl), or among processes on the CPU (gloo)."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from calibrate.device.measurements import (
    Measurement,
    MeasurementFile,
    append_lines,
    point_line,
    read_measurements,
    remark_line,
)
from calibrate.device.timing import synchronize

GPU_BYTES = tuple(2**p for p in range(12, 29, 2))
CPU_BYTES = (2**12, 2**16, 2**20, 2**23)
NUM_RUNS, NUM_WARM = 20, 5


def measure_collectives(path: Path, device: torch.device, held: MeasurementFile) -> MeasurementFile:
    """Measure what the file lacks among 2, 4, 8 ... GPUs, or two processes on a CPU; append it."""
    is_cuda = device.type == "cuda" and torch.cuda.device_count() > 1
    most = torch.cuda.device_count() if is_cuda else 2
    done = {point.shape["num_gpus"] for point in held.family("all_reduce")}
    for world in [2**p for p in range(1, most.bit_length())]:
        if world in done:
            continue
        try:
            points = _measure(world, is_cuda)
        except Exception as error:  # any rank's failure arrives here as a ProcessRaisedException
            append_lines(path, [remark_line(f"collectives among {world} could not be measured: {str(error)[:200]}")])
            continue
        append_lines(path, [point_line(p) for p in points])
    return read_measurements(path)


def _measure(world: int, is_cuda: bool) -> list[Measurement]:
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results: Any = context.SimpleQueue()
    start: Any = mp.start_processes  # type: ignore[attr-defined, unused-ignore]
    started = start(_rank, (world, port, is_cuda, results), nprocs=world, join=False, start_method="spawn")
    points: list[Measurement] = []
    while not started.join(timeout=0.1):
        while not results.empty():
            points.append(results.get())
    while not results.empty():
        points.append(results.get())
    return points


def _rank(rank: int, world: int, port: int, is_cuda: bool, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = torch.device(f"cuda:{rank}" if is_cuda else "cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if is_cuda else "gloo", rank=rank, world_size=world)
    try:
        for family in ("all_reduce", "send_recv"):
            if family == "send_recv" and world > 2:
                continue
            for num_bytes in GPU_BYTES if is_cuda else CPU_BYTES:
                samples = _times(family, num_bytes, rank, device)
                if rank == 0:
                    results.put(_point(family, num_bytes, world, samples, "nccl" if is_cuda else "gloo"))
    finally:
        dist.destroy_process_group()


def _times(family: str, num_bytes: int, rank: int, device: torch.device) -> list[float]:
    message = torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=device)

    def once() -> None:
        if family == "all_reduce":
            dist.all_reduce(message)
        elif rank == 0:
            dist.send(message, 1)
        else:
            dist.recv(message, 0)

    samples = []
    for index in range(NUM_WARM + NUM_RUNS):
        dist.barrier()
        synchronize(device)
        begin_s = time.perf_counter()
        once()
        synchronize(device)
        if index >= NUM_WARM:
            samples.append(time.perf_counter() - begin_s)
    return samples


def _point(family: str, num_bytes: int, world: int, samples: list[float], backend: str) -> Measurement:
    p10, mid, p90 = (float(v) for v in np.percentile(samples, [10, 50, 90]))
    shape = {"bytes": num_bytes, "num_gpus": world}
    return Measurement(family, "bf16", shape, mid, p10, p90, len(samples), variant=backend)
