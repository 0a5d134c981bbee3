"""Pages that people look at: a run, a search or a comparison as one HTML file, and as a live page of a server."""
