"""What every folder may use: files, YAML, paths, the process group."""
