"""The training configuration: its options, and how a file of them is read."""
