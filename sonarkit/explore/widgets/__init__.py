"""Widgets for the notebooks: ipywidgets wiring around plain functions, which the notebooks also call without them."""
