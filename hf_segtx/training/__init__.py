"""Training: arguments, the run, its report, and what both stand on."""
