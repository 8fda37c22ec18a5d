"""Energies to forces, stress and Hessian; compiled, saved, loaded, checked on a new machine; how far a structure is from the training data."""
