"""Measuring codecs and stories."""
