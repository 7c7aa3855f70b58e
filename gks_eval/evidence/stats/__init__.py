"""Statistics as pure functions, an idea a file."""
