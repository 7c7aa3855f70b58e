"""The command line: thin, one file per family of commands."""
