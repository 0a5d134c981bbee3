"""Train VAE, GAN and VAE-GAN image generators on one machine or on a Ray cluster.

Importing the package imports neither torch nor ray.
"""

__version__ = "0.1.0"
