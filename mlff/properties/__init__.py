"""Quantities that are published: of a potential (vibrations, elastic constants, ...) and of a trajectory (diffusion, ...)."""
