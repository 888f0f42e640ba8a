"""Times whole batches with torch: steps of a paged decoder, an encoder and a ResNet-50, all of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from calibrate.device.case import Case, step_chunks
from calibrate.device.kernels import TORCH_DTYPES, NotSupportedError, spread_contexts
from calibrate.device.paged_decoder import PagedDecoder, make_step
from calibrate.device.static_models import Encoder, ResNet50
from calibrate.device.sweep import Scale
from calibrate.device.timing import Work

BLOCK_SIZE = 16


class Batches:
    """Builds the work of batch cases; each network is made once and kept until the next family is asked for."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device = scale, device
        self.dtype = TORCH_DTYPES[scale.main_dtype]
        self._kind = ""
        self._network: torch.nn.Module | None = None

    def build(self, case: Case) -> Work:
        """The work of a case.

        Raises:
            NotSupportedError: graphs without CUDA. torch.OutOfMemoryError: it does not fit.
        """
        if self._kind != case.family:
            self._network = None  # frees the previous one's memory first
            self._network, self._kind = self._make(case.family), case.family
        if case.family == "step":
            return self._step(case)
        batch = int(case.shape["batch"])
        if case.family == "encoder_batch":
            ids = torch.randint(0, self.scale.encoder.vocab_size, (batch, int(case.shape["tokens"])))
            inputs = ids.to(self.device)
        else:
            size = int(case.shape["image_size"])
            images = torch.randn(batch, 3, size, size, device=self.device, dtype=self.dtype)
            inputs = images.to(memory_format=torch.channels_last)
        network = self._network
        assert network is not None
        return lambda: network(inputs)

    def _make(self, family: str) -> torch.nn.Module:
        if family == "encoder_batch":
            return Encoder(self.scale.encoder, self.device, self.dtype)
        if family == "vision_batch":
            return ResNet50(self.scale.image_size, self.device, self.dtype)
        blocks = self.scale.kv_tokens // BLOCK_SIZE + 2 * max(self.scale.batches) + 2
        return PagedDecoder(self.scale.decoder, self.device, self.dtype, blocks, BLOCK_SIZE)

    def _step(self, case: Case) -> Work:
        decoder = self._network
        assert isinstance(decoder, PagedDecoder)
        mean = int(case.shape["decode_mean_context"])
        decodes = spread_contexts(int(case.shape["num_decode"]), mean, mean)
        step = make_step(decoder, step_chunks(case.shape), decodes)
        if not case.variant.endswith("/graph"):
            return lambda: decoder(step)
        if self.device.type != "cuda":
            raise NotSupportedError("CUDA graphs need CUDA")
        return _captured(lambda: decoder(step), self.device)


def _captured(work: Work, device: torch.device) -> Work:
    """The work as a CUDA graph, warmed up on a side stream first as capture demands."""
    stream: Any = torch.cuda.Stream
    side = stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seeded(seed: int) -> None:
    """The same random weights, contexts and block tables each time."""
    torch.manual_seed(seed)


def free_memory(device: torch.device) -> None:
    """Give cached device memory back, after a case that did not fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def torch_devices() -> Iterator[str]:
    """Device kinds that torch can use here, best first."""
    if torch.cuda.is_available():
        yield "cuda"
    yield "cpu"
