"""What every other part needs: configurations, files, downloads, checkpoints, processes, packing and losses."""
