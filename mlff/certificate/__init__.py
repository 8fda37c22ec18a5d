"""What is measured on a trained potential before anyone runs it."""
