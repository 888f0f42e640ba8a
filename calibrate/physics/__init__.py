"""How long one kernel takes and how much it holds: one physical topic a file."""
