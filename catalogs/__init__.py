"""What exists: GPUs, models, instances, prices, quality; every row with its source and date."""
