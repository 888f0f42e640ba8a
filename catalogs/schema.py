"""The frozen nouns: what a GPU, a model, an instance, a price and a replica are.

Units: bytes, FLOP/s, bytes/s, seconds, US dollars an hour. A figure that is not known is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

ModelKind = Literal["decoder", "encoder", "vision"]
Purchase = Literal["on_demand", "spot", "reserved_1yr", "reserved_3yr", "capacity_block"]


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet. Rates are dense (not doubled by sparsity)."""

    name: str
    architecture: str
    compute_capability: float
    num_sms: int
    peak_flops: Mapping[str, float]  # FLOP/s by dtype: fp32 tf32 fp16 bf16 fp8 int8 int4 fp4; absent: unsupported
    memory_bytes: float  # what the driver shows, where known; else the data sheet's
    memory_bandwidth_bytes_per_s: float
    l2_bytes: float
    nvlink_bytes_per_s: float | None  # one direction, per GPU; None: no NVLink
    pcie_bytes_per_s: float  # one direction, x16
    tdp_w: float
    source: str
    as_of: str
    confidence: str
    notes: str = ""


@dataclass(frozen=True)
class Moe:
    """A mixture of experts: which layers, how many experts, how wide."""

    num_experts: int
    num_experts_per_token: int
    expert_intermediate_size: int
    num_shared_experts: int = 0
    shared_intermediate_size: int = 0  # width of all shared experts together
    num_dense_layers: int = 0  # layers that keep a dense MLP of ``Model.intermediate_size``


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek): the cache holds one compressed vector a token."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Model:
    """A network's architecture: all that its FLOPs, weights and KV bytes follow from."""

    name: str
    kind: ModelKind
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str  # of the published weights
    tie_word_embeddings: bool = False
    num_mlp_matrices: int = 3  # gate, up, down; 2 for classic MLPs
    qkv_bias: bool = False
    sliding_window: int | None = None  # tokens
    num_sliding_layers: int = 0
    moe: Moe | None = None
    mla: Mla | None = None
    num_parameters: float | None = None  # published; checked against the count from the architecture
    flops_per_item: float | None = None  # vision: FLOPs of one image
    quantization: str | None = None  # precision in which the weights are published, when not ``dtype`` (gpt-oss: mxfp4)
    hf_ids: tuple[str, ...] = ()
    source: str = ""
    as_of: str = ""


@dataclass(frozen=True)
class Instance:
    """A machine that is for sale."""

    name: str
    cloud: str
    gpu: str
    num_gpus: int
    gpu_fraction: float  # below 1 for partitions of a GPU
    num_vcpus: int | None
    memory_bytes: float | None
    network_bytes_per_s: float | None
    local_nvme_bytes: float | None
    interconnect: str  # between its GPUs: nvlink, nvswitch, pcie, none
    interconnect_bytes_per_s: float | None  # one direction, per GPU
    source: str
    as_of: str
    notes: str = ""


@dataclass(frozen=True)
class Price:
    """One price of one instance in one region and purchase form."""

    instance: str
    region: str
    purchase: Purchase
    usd_per_hour: float
    source: str
    as_of: str
    confidence: str
    notes: str = ""


@dataclass(frozen=True)
class Engine:
    """A serving engine's settings under vLLM's names; other frameworks translate theirs into these.

    ``None`` means the framework's own default for the version named in ``catalogs/engines.yaml``.
    """

    framework: str = "vllm"  # vllm tensorrt-llm tgi sglang onnxruntime
    version: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    num_gpu_blocks: int | None = None  # None: derived from memory
    gpu_memory_utilization: float | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool = False
    options: Mapping[str, object] = field(default_factory=dict)  # techniques beyond the common core, by flag name


@dataclass(frozen=True)
class Replica:
    """One copy of a served model: model x GPU x parallelism x precision x engine. Profiles are keyed by it."""

    model: Model
    gpu: Gpu
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel_size: int = 1
    precision: str = "bf16"
    kv_cache_dtype: str = "auto"
    engine: Engine = field(default_factory=Engine)
    interconnect_bytes_per_s: float | None = None  # None: NVLink where the GPU has it, else PCIe

    @property
    def num_gpus(self) -> int:
        """GPUs that one replica occupies."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def with_engine(self, **settings: object) -> Replica:
        """The same replica with some engine settings changed."""
        return replace(self, engine=replace(self.engine, **settings))  # type: ignore[arg-type]
