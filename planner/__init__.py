"""What to buy: capacity, cost, the optimal mix over time, its proof and its verification."""
