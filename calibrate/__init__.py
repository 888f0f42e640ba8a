"""How long a step takes: work, rooflines, profiles, fits, and the timing of devices and servers."""
