"""The embedding store: a corpus as sentence vectors on disk, read without loading it."""
