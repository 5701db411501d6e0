"""Instruments that hold operations and kernels against their definitions."""
