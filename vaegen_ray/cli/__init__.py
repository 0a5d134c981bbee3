"""The verbs: each parses its arguments, calls one function, and prints one result."""
