"""From verdicts to a ranking: which comparisons to ask for, and the fit that combines them. Pure."""
