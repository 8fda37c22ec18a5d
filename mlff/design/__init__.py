"""Structures that have a wanted property: what may change, the properties, the search, what was found."""
