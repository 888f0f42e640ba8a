"""What a scenario file asks for, and the replicas, roles and fleets that it becomes."""
