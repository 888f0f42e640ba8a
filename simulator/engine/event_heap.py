"""A heap of (instant, number): earliest first, at equal instants the smallest number."""

from __future__ import annotations

from typing import Any

from simulator.engine.compiled import entry, inner


@entry
def push(events: Any, at_s: float, i: int) -> None:
    """Add one; ``events`` has ``heap_s``, ``heap`` (capacity,) and ``num_heap`` (1,)."""
    heap_s, heap = events.heap_s, events.heap
    place = events.num_heap[0]
    events.num_heap[0] += 1
    while place > 0:
        parent = (place - 1) // 2
        if heap_s[parent] < at_s or (heap_s[parent] == at_s and heap[parent] < i):
            break
        heap_s[place], heap[place] = heap_s[parent], heap[parent]
        place = parent
    heap_s[place], heap[place] = at_s, i


@inner
def pop(events: Any) -> int:
    """Take the first; returns its number."""
    heap_s, heap = events.heap_s, events.heap
    top = heap[0]
    events.num_heap[0] -= 1
    size = events.num_heap[0]
    at_s, i = heap_s[size], heap[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            heap_s[right] < heap_s[child] or (heap_s[right] == heap_s[child] and heap[right] < heap[child])
        ):
            child = right
        if at_s < heap_s[child] or (at_s == heap_s[child] and i < heap[child]):
            break
        heap_s[place], heap[place] = heap_s[child], heap[child]
        place = child
    heap_s[place], heap[place] = at_s, i
    return top  # type: ignore[no-any-return]
