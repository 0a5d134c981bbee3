"""The feature network that comes with the project, and the script that trained it."""
