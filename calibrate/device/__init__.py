"""Measuring a device with torch: kernels, whole batches, exchanges."""
