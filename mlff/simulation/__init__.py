"""Molecular dynamics, compiled with the model or by ASE, relaxation and sampling."""
