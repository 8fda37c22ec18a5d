"""The potential in other programs: ASE, LAMMPS, i-PI, OpenMM, JAX MD."""
