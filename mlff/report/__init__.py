"""Plots of what a training run or a simulation did."""
