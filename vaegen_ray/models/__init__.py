"""Networks only: no loss, no optimizer, no file."""
