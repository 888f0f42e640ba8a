"""What comes in: requests as columns, traces, synthetic loads, forecasts."""
