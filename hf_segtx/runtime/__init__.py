"""Runners for machines without PyTorch: each file here stands alone, and is copied beside exported models."""
