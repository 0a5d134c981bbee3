"""The discriminator of a run, by the kind that its job asks for."""

from vaegen_ray.config.objective import ConvolutionalDiscriminator, PatchDiscriminator
from vaegen_ray.config.objective import Discriminator as DiscriminatorSettings
from vaegen_ray.models import patch_discriminator
from vaegen_ray.models.discriminator import Discriminator

AnyDiscriminator = (
    Discriminator | patch_discriminator.PatchDiscriminator | (patch_discriminator.FrozenFeaturesDiscriminator)
)


def build_discriminator(settings: DiscriminatorSettings, *, image_size: int, channels: int) -> AnyDiscriminator:
    """The network of ``settings``, for square images."""
    if isinstance(settings, ConvolutionalDiscriminator):
        return Discriminator(settings, image_size=image_size, channels=channels)
    if isinstance(settings, PatchDiscriminator):
        return patch_discriminator.PatchDiscriminator(settings, channels=channels)
    return patch_discriminator.FrozenFeaturesDiscriminator(settings)
