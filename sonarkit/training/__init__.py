"""One loop trains every model here."""
