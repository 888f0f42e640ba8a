"""What one replica sustains within the promise, by simulation; and whether a fleet keeps it."""
