"""What a replica does to each request: scheduling, KV cache, preemption, routing; compiled."""
