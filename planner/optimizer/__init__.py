"""The model of the purchase, its solution, its bound and its proof."""
