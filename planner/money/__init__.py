"""Prices, times and counts to dollars."""
