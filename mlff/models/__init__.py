"""Models: params and Graph to per-atom energies. A model never sees a force."""
