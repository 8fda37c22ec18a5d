"""Whether reference data can be right: units, signs, outliers, contradictions."""
