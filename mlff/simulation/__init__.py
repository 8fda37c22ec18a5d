"""Molecular dynamics and relaxation on top of an ASE calculator."""
