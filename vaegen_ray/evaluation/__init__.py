"""Numbers and pictures about a trained model; nothing here trains one."""
