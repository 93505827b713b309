"""Geometry, figures and widgets of the embedding space."""
