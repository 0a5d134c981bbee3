"""What is minimised: one small function a loss, and the objectives `vae`, `gan` and `vae_gan`."""
