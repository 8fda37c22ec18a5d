"""The potential in other programs: ASE, i-PI, OpenMM, JAX MD."""
