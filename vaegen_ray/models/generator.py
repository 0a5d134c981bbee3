"""The generator of a run: its encoder and decoder, by the kind of the model."""

import torch
from torch import Tensor, nn

from vaegen_ray.config.model import KlAutoencoderModel, Model
from vaegen_ray.models.convolutional import Decoder, Encoder
from vaegen_ray.models.kl_autoencoder import KlDecoder, KlEncoder


class Generator(nn.Module):
    """Encoder (absent for a GAN) and decoder: what is trained, averaged, evaluated and kept.

    A latent code has ``latent_shape``: one dimension in a convolutional model, channels and a picture in a KL
    autoencoder. Letters of tensors count all of it as Z where the difference does not matter.
    """

    encoder: Encoder | KlEncoder | None
    decoder: Decoder | KlDecoder

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.image_size, self.latent_shape = model.image_size, model.latent_shape
        self.down_factor = model.image_size // model.latent_shape[-1] if len(model.latent_shape) > 1 else 1
        if isinstance(model, KlAutoencoderModel):
            self.encoder, self.decoder = KlEncoder(model), KlDecoder(model)
            if model.freeze_encoder:
                self.encoder.requires_grad_(requires_grad=False)
        else:
            shape = {"image_size": model.image_size, "channels": model.channels, "latent_dim": model.latent_dim}
            self.encoder = Encoder(model.encoder, **shape) if model.encoder is not None else None
            self.decoder = Decoder(model.decoder, **shape)
        self.encoder_is_frozen = isinstance(model, KlAutoencoderModel) and model.freeze_encoder

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn, of each network."""
        groups = {} if self.encoder is None or self.encoder_is_frozen else {"encoder": list(self.encoder.parameters())}
        return groups | {"decoder": list(self.decoder.parameters())}

    def posterior(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent codes of images, each of shape (B, *latent_shape).

        Of a frozen encoder without a graph.
        """
        assert self.encoder is not None
        if not self.encoder_is_frozen:
            return self.encoder(images_BCHW)
        with torch.no_grad():
            return self.encoder(images_BCHW)
