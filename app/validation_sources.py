"""Where the points of docs/validation.md that no fit saw come from, and what to know when reading them."""

from __future__ import annotations

from typing import NamedTuple

from calibrate.fitting.serving import SHORT_PROMPT_TOKENS


class Source(NamedTuple):
    """Serving points that no fit saw.

    Attributes:
        stem: of the file. title: of the section. note: how to read it.
        without: metrics that are not compared.
    """

    stem: str
    title: str
    note: str
    without: tuple[str, ...] = ()


OTHER_ENGINES = (
    Source(
        "trtllm_docs_v0.14_inflight",
        "TensorRT-LLM 0.14, in-flight batching at maximum load (NVIDIA's documents)",
        "As many requests as NVIDIA's performance overview says for each length are queued at once, 0.95 of the free "
        "memory holds KV, and blocks are reserved (guaranteed no evict, the default). FP8 rows have an FP8 KV cache. "
        "The A100 PCIe profile is carried over, slowed by the card's power limit; the L40S has no tables of "
        "TensorRT-LLM's kernels, and vLLM's are slower there.",
    ),
    Source(
        "trtllm_docs_static",
        "TensorRT-LLM 0.5 to 0.9, static batches (NVIDIA's documents)",
        "Rows of 0.5 and 0.9 differ in whether a rate is of the group or of one GPU; those of 0.6.1 at TP 2 do not "
        "say, and are met as if they were of one, hence the worst point. These were taken inside the engine, without "
        "the server whose work on a request the simulated TTFT holds.",
    ),
    Source(
        "ree2raz_l4_a100",
        "vLLM 0.8.5 and SGLang 0.4.6 (without CUDA graphs) on L4, closed loops",
        "Neither the GPU nor SGLang was in any fit: the L4's profile is carried over from the L40S on its data sheet. "
        f"The prompts were short ({SHORT_PROMPT_TOKENS} tokens are assumed), so TTFT is not compared; the source's "
        "durations are shorter than whole rounds of its clients take, so neither is throughput.",
        ("output_tokens_per_s", "duration_s"),
    ),
    Source(
        "bereketlemma_l4_mistral7b",
        "vLLM 0.16 on L4, AWQ weights (Marlin), static batches",
        f"Neither the GPU nor weight-only kernels were in any fit. Prompts were short ({SHORT_PROMPT_TOKENS} tokens "
        "are assumed). The version schedules asynchronously, with overheads fitted on loops of another model on H100.",
    ),
    Source(
        "price_compass_8b",
        "vLLM of August 2024 on L4, 1,000 ShareGPT prompts at once",
        "One point, of mean lengths in place of the prompts' own, and of an engine that is two years older.",
    ),
    Source(
        "bsc_vllm085_h100_nolora",
        "vLLM 0.8.5 on H100, thousands of prompts at once (BSC)",
        "The cards are 64 GB H100s whose bandwidth and power are not stated; they are simulated as the 80 GB card. "
        "Measured TPOT starts higher (weights are read more slowly) and grows by 27 us a sequence, half of what vLLM "
        "0.12's loops above show.",
    ),
    Source(
        "argonne_llm_inference_bench",
        "vLLM and TensorRT-LLM of 2024, static batches (Argonne)",
        "Engines of 2024 are slower than their kernels by more than today's overheads: the bias is to the fast side, "
        "more so for vLLM and with more GPUs. The A100's memory size is not stated.",
    ),
    Source(
        "inferencex_experimental_h200_fp8",
        "MiniMax-M2.5 in FP8 blocks on 8 x H200, experts spread over all GPUs (InferenceX, experimental)",
        "An unofficial harness, engine version and settings not stated. The simulated server is twice as fast: its "
        "experts run at the speed of tuned kernels, and the model's norms over all heads, which cost two more "
        "exchanges a layer, are not in its catalogue entry. Measured TPOT jumps by a factor of 4 between neighbouring "
        "loads. Do not trust the simulator for a new mixture of experts before `plan calibrate endpoint` has seen it.",
    ),
)
CLOSED_LOOP_NOTES = (
    "",
    "What remains, and why:",
    "",
    "- The loops of Llama-3.1-70B in FP8 come from another lab than those of Qwen3-32B. With no host time "
    "between steps (asynchronous scheduling) their TPOT is met within 3 %; with the overheads that Qwen3-32B's "
    "synchronous engine shows it comes out 10 % long. One set of constants serves both; it is the one that most"
    " points ask for. `async_scheduling: true` takes the constants fitted on these 44 loops alone: TPOT is then off by"
    " 3.3 % and throughput by 3.0 % in the median.",
    "- 4,096/128 with 128 clients asks for 4,096 prompt tokens a step. A budget of 2,048 cannot serve that, so "
    "the queue grows and TTFT with it; the measured engine had a larger budget there. With 8,192 those points "
    "are met, and the TTFT of the others is off by 31 % in place of 12 %: clients that finish together come "
    "back together, and all prompts of such a group fall into one step.",
    "- TensorRT-LLM's TTFT holds a whole request's duration over the clients less one: one client always waits."
    " The cause is not documented; the simulator keeps one seat free in its closed loops.",
    "- TensorRT-LLM at TP 4 with 64 and 128 clients: its TTFT jumps up to 2 s while TPOT stays low, as if fewer"
    " sequences ran than clients asked for; nothing in the settings that are stated explains it.",
    "- 1,024/8,192 and 8,192/1,024 with 32 and 64 clients at TP 2 overflow the KV cache: TTFT is a queue's "
    "length, in which a small error of the block count weighs heavily.",
)
