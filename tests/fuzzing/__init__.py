"""Hostile inputs for every reader of mlff: seeds, mutations, and a guard that judges what the reader did with each."""
