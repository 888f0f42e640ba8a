"""The question as the optimizer sees it: demand, candidates, market, quality, limits."""
