"""Tables, plots and the HTML report: what a model, a training run or a simulation is like."""
