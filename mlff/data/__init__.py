"""Files to arrays, on the host: formats, datasets, baselines, neighbour lists, batches."""
