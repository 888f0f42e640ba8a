"""Static batches: which requests may share one, and what rows of one length compute beyond their own tokens.

A padded batch is a rectangle: as many rows as it began with (or always ``max_num_seqs``), each as long as its longest
prompt or the upper end of its bucket. A row whose answer has ended is computed on until the last one's has.
"""

from __future__ import annotations

from typing import Any

from simulator.engine.compiled import inner


@inner
def bucket_end(length: int, bucket: int) -> int:
    """The upper end of the bucket that holds a length; the length itself without buckets."""
    return (length + bucket - 1) // bucket * bucket if bucket > 0 else length


@inner
def alike(w: Any, r: int, i: int, j: int) -> bool:
    """Whether two requests may share a batch."""
    bucket = w.replicas[r].bucket
    if bucket == 0:
        return True
    return bucket_end(w.requests[i].input, bucket) == bucket_end(w.requests[j].input, bucket)


@inner
def begin(w: Any, r: int) -> None:
    """Note the rectangle of a batch whose prompts are about to be computed."""
    me = w.replicas[r]
    me.batch_rows, me.batch_tokens, me.batch_steps = max(me.num_running, me.least_rows), 0, me.steps
    for place in range(me.num_running):
        i = w.running[r, place]
        length = w.requests[i].input + w.requests[i].generated
        me.batch_tokens = max(me.batch_tokens, bucket_end(length, me.bucket))


@inner
def decode_contexts(w: Any, r: int) -> tuple[float, float, float]:
    """Mean, shortest and longest context of a padded batch's rows in this step: all the same."""
    me = w.replicas[r]
    context = float(me.batch_tokens + me.steps - me.batch_steps + 1)
    return context, context, context
