"""Other loaders of images, each as its documentation shows it. They run in their own environment: `serve_peer.py`."""
