"""One reader per file format: a path to frames in the units of the file, and what the file says about them."""
