"""One objective for each way in which a job can be set."""

from tests.objectives.steps import FIXED, Tree, gan, vae, vae_gan


def scaled(likelihood: str, scale: str, **settings: float) -> Tree:
    """A reconstruction with its scale."""
    return {"kind": likelihood, "scale": {"kind": scale, **settings}}


ADAPTIVE: Tree = {"kind": "adaptive", "weight": 0.8}
SHARE: Tree = {"kind": "gradient_share", "share": 0.4}
EQUILIBRIUM: Tree = {"kind": "equilibrium", "weight": 0.05}
FEATURES: Tree = {"kind": "discriminator_features", "layer": 1}
FREE_BITS: Tree = {"weight": 4.0, "penalty": {"kind": "free_bits", "nats_per_dimension": 0.11}}
CAPACITY: Tree = {"weight": 4.0, "penalty": {"kind": "capacity", "nats": 12.0, "growth_images": 1000}}

VAES: dict[str, Tree] = {
    "vae": vae(),
    "vae-laplace": vae(reconstruction=scaled("laplace", "fixed", value=0.3)),
    "vae-gaussian_learned": vae(reconstruction=scaled("gaussian", "learned", initial=0.4)),
    "vae-laplace_learned": vae(reconstruction=scaled("laplace", "learned", initial=2.0)),
    "vae-gaussian_optimal": vae(reconstruction=scaled("gaussian", "batch_optimal")),
    "vae-laplace_optimal": vae(reconstruction=scaled("laplace", "batch_optimal")),
    "vae-free_bits": vae(kl=FREE_BITS),
    "vae-capacity": vae(kl=CAPACITY),
    "vae-linear_kl": vae(kl={"weight": 30.0, "schedule": {"kind": "linear", "start_images": 8, "warmup_images": 64}}),
    "vae-cyclical_kl": vae(kl={"weight": 30.0, "schedule": {"kind": "cyclical", "cycle_images": 50}}),
}

GANS: dict[str, Tree] = {
    "gan": gan(),
    "gan-hinge": gan(loss="hinge"),
    "gan-least_squares": gan(loss="least_squares"),
    "gan-relativistic": gan(loss="relativistic", gradient_penalty={"r1": 0.5, "r2": 0.7}),
    "gan-ramp": gan(start_images=8, ramp_images=64),
    "gan-equilibrium": gan(balance=EQUILIBRIUM),
    "gan-augment": gan(augment=["color", "translation", "cutout"]),
    "gan-lecam": gan(lecam={"weight": 0.3}),
}

VAE_GANS: dict[str, Tree] = {
    "vae_gan": vae_gan(),
    "vae_gan-hinge": vae_gan({"loss": "hinge"}),
    "vae_gan-least_squares": vae_gan({"loss": "least_squares"}),
    "vae_gan-relativistic": vae_gan({"loss": "relativistic", "gradient_penalty": {"r1": 0.5, "r2": 0.7}}),
    "vae_gan-reconstructions": vae_gan({"shows": "reconstructions"}),
    "vae_gan-generated": vae_gan({"shows": "generated"}),
    "vae_gan-relativistic_generated": vae_gan({"loss": "relativistic", "shows": "generated"}),
    "vae_gan-adaptive": vae_gan({"balance": ADAPTIVE}),
    "vae_gan-adaptive_capped": vae_gan({"balance": {**ADAPTIVE, "max_ratio": 0.01}}),
    "vae_gan-adaptive_reconstructions": vae_gan({"balance": ADAPTIVE, "shows": "reconstructions"}),
    "vae_gan-share": vae_gan({"balance": SHARE}),
    "vae_gan-share_generated": vae_gan({"balance": SHARE, "shows": "generated"}),
    "vae_gan-share_learned_scale": vae_gan({"balance": SHARE}, reconstruction=scaled("gaussian", "learned")),
    "vae_gan-share_optimal_scale": vae_gan({"balance": SHARE}, reconstruction=scaled("laplace", "batch_optimal")),
    "vae_gan-equilibrium": vae_gan({"balance": EQUILIBRIUM}),
    "vae_gan-encoder_deaf": vae_gan({"reaches_encoder": False}),
    "vae_gan-encoder_deaf_share": vae_gan(
        {"reaches_encoder": False, "balance": SHARE, "feature_matching": {"weight": 2}}
    ),
    "vae_gan-feature_matching": vae_gan({"feature_matching": {"weight": 3.0}, "ramp_images": 64}),
    "vae_gan-feature_matching_adaptive": vae_gan({"feature_matching": {"weight": 3.0}, "balance": ADAPTIVE}),
    "vae_gan-feature_matching_share": vae_gan({"feature_matching": {"weight": 3.0}, "balance": SHARE}),
    "vae_gan-features": vae_gan({"reaches_encoder": False}, reconstruction=FEATURES),
    "vae_gan-features_generated": vae_gan({"shows": "generated"}, reconstruction=FEATURES),
    "vae_gan-features_adaptive": vae_gan({"balance": ADAPTIVE, "augment": ["color"]}, reconstruction=FEATURES),
    "vae_gan-free_bits": vae_gan(kl=FREE_BITS),
    "vae_gan-capacity": vae_gan(kl=CAPACITY),
    "vae_gan-ramp": vae_gan({"balance": SHARE, "start_images": 8, "ramp_images": 64}),
    "vae_gan-augment": vae_gan({"augment": ["color", "translation", "cutout"], "balance": ADAPTIVE}),
    "vae_gan-r1_lazy": vae_gan({"gradient_penalty": {"r1": 2.0, "every_steps": 5}}),
    "vae_gan-r2": vae_gan({"gradient_penalty": {"r2": 2.0}, "shows": "reconstructions"}),
    "vae_gan-lecam": vae_gan({"lecam": {"weight": 0.3}, "loss": "hinge"}),
    "vae_gan-preset_larsen": {"kind": "vae_gan", "preset": "larsen", "discriminator": {"width": 4, "max_width": 8}},
}

SPECTRAL: dict[str, Tree] = {
    "vae_gan-spectral_norm": {
        **vae_gan({"balance": FIXED, "gradient_penalty": {"r1": 1.0}}),
        "discriminator": {"width": 4, "max_width": 8, "spectral_norm": True},
    },
}

ADVERSARIAL = {**GANS, **VAE_GANS, **SPECTRAL}
ALL = {**VAES, **ADVERSARIAL}
