"""The job's schema, its loading, and the layout of a run directory. Never imports torch."""
