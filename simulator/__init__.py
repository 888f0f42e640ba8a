"""What a fleet does to each request: workloads, engines, routing, scaling, spot, metrics."""
