"""The potential in other programs: ASE."""
