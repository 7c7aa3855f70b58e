"""The command line: thin, a file a family of commands."""
