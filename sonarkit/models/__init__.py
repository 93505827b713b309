"""Models that continue a story, and the rollout that turns their predictions into text."""
