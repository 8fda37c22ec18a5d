"""A trained potential corrected to match observables: targets, the averages of runs, the optimisation, what came out."""
