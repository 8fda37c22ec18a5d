"""What all else stands on: errors, units, files, signals, the set-up of JAX and its compiler."""
