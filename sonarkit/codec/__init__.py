"""SONAR itself: sentences to vectors and back."""
