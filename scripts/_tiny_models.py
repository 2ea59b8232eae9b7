"""The initial models of nifi-tiny. The autoencoder starts as a principal component analysis of patches."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from nifi_ns.diffusion import Embeddings, Prompt

PATCH = 4
LATENT_CHANNELS = 24
LATENT_NOISE = 0.03
"""Standard deviation of the autoencoder's posterior, relative to that of the latents."""
PROMPT_DIM = 32
_CHANNELS = 64
_ANCHOR = 100.0


def fixed_prompt() -> Prompt:
    """Return the fixed embedding of "photo", with zeros as null prompt, because nifi-tiny has no text encoder."""
    photo = Embeddings(torch.eye(PROMPT_DIM)[None, :2], torch.eye(PROMPT_DIM)[:1])
    return Prompt("photo", photo, Embeddings(torch.zeros(1, 2, PROMPT_DIM), torch.zeros(1, PROMPT_DIM)))


def build_transformer(width: int, layers: int) -> SD3Transformer2DModel:
    """Return a miniature SD3 transformer, initialised as a linear map of each patch.

    Its blocks start as the identity (adaLN-zero, Peebles & Xie 2023). The residual stream carries the patch's values in
    dimensions that the position table does not use, and two constants at +-_ANCHOR so that LayerNorm keeps the
    brightness of a patch. The constants make the output of layer norms small, so their modulation scales it up again.
    Blocks and adapters then have inputs of unit size.

    Args:
        width: a multiple of 32, at least 128.
        layers: number of blocks.
    """
    model: Any = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=PROMPT_DIM,
        caption_projection_dim=width,
        pooled_projection_dim=PROMPT_DIM,
        pos_embed_max_size=64,
    )
    values = LATENT_CHANNELS * 2 * 2
    quarter = width // 4  # the table is four runs of sines and cosines, each from the fastest to the slowest
    patch = torch.cat([torch.arange(q * quarter - values // 4, q * quarter) for q in range(1, 5)])
    anchors = [quarter - values // 4 - 1, 2 * quarter - values // 4 - 1]
    gain = _ANCHOR * (2 / width) ** 0.5
    modulation = torch.full((width,), gain - 1)
    modulation[anchors] = gain / _ANCHOR - 1
    with torch.no_grad():
        model.pos_embed.proj.weight.zero_()
        model.pos_embed.proj.weight[patch] = torch.eye(values).reshape(values, LATENT_CHANNELS, 2, 2)
        model.pos_embed.pos_embed[..., patch] = 0
        model.pos_embed.proj.bias[:] = -model.pos_embed.pos_embed[0].mean(0)
        model.pos_embed.proj.bias[anchors] = torch.tensor([_ANCHOR, -_ANCHOR])
        for block in model.transformer_blocks:
            for norm in (block.norm1, block.norm1_context):
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
            _, scale_attention, _, _, scale_feed_forward, _ = block.norm1.linear.bias.chunk(6)
            scale_attention[:], scale_feed_forward[:] = modulation, modulation
        nn.init.zeros_(model.norm_out.linear.weight)
        nn.init.zeros_(model.norm_out.linear.bias)
        model.norm_out.linear.bias[:width] = -1  # a scale of zero: no velocity yet
        nn.init.zeros_(model.proj_out.weight)
        nn.init.zeros_(model.proj_out.bias)
        # Columns are (channel, row, column) of the patch, rows (row, column, channel), as SD3 unpacks them.
        unpacked = torch.eye(values).reshape(LATENT_CHANNELS, 2, 2, values).permute(1, 2, 0, 3).reshape(values, values)
        model.proj_out.weight[:, patch] = gain * unpacked
    return model


def build_autoencoder(photos: list[Tensor]) -> AutoencoderKL:
    """Return an AutoencoderKL of 4x4 patches (48 channels), initialised as the best linear autoencoder.

    It has no down- or upsampling inside, so it works at a quarter of the image's sides. Three parts of an AutoencoderKL
    are not linear, and each is neutralised: the last convolution of residual branches starts at 0; for SiLU, channels
    come in pairs of opposite sign (`silu(x) - silu(-x) = x`); for GroupNorm, two constant channels at +-_ANCHOR hold
    nearly all of the variance, so that it divides by a constant. The last property persists in training: the result of
    a patch does not depend on the rest of the image, so tiles match.

    Args:
        photos: [3, H, W] each, in [0, 1].
    """
    dim = 3 * PATCH**2
    patches = [F.pixel_unshuffle(p[:, : p.shape[1] // 4 * 4, : p.shape[2] // 4 * 4] * 2 - 1, PATCH) for p in photos]
    samples = torch.cat([p.flatten(1) for p in patches], 1).double()  # [48, N]
    mean = samples.mean(1)
    variances, basis = torch.linalg.eigh(torch.cov(samples))
    variances, basis = variances.flip(0), basis.flip(1)
    # This scaling to a mean variance of 1 minimises the effect of noise in the latents: component k costs 1/scale^2,
    # and the sum is lowest for scale^2 proportional to 1/sqrt(variance).
    scales = variances[:LATENT_CHANNELS] ** -0.25
    scales = scales / (scales.square() * variances[:LATENT_CHANNELS]).mean().sqrt()
    analysis = scales[:, None] * basis[:, :LATENT_CHANNELS].T  # [latent, 48]
    synthesis = basis[:, :LATENT_CHANNELS] / scales  # [48, latent]
    spare = slice(LATENT_CHANNELS, _CHANNELS - LATENT_CHANNELS - 2)
    detail = (variances[spare] ** -0.5)[:, None] * basis[:, spare].T  # [spare, 48]

    model: Any = AutoencoderKL(
        in_channels=dim,
        out_channels=dim,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(_CHANNELS,),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=1.0,
    )
    pairs, rest = slice(0, 2 * LATENT_CHANNELS), slice(2 * LATENT_CHANNELS + 2, None)
    with torch.no_grad():
        for part in (model.encoder, model.decoder):
            for module in part.modules():
                if isinstance(module, ResnetBlock2D):
                    conv1, conv2, norm1, norm2 = (getattr(module, k) for k in ("conv1", "conv2", "norm1", "norm2"))
                    conv1.weight[_anchors()] = 0
                    conv1.bias[_anchors()] = torch.tensor([_ANCHOR, -_ANCHOR])
                    nn.init.zeros_(conv2.weight)
                    nn.init.zeros_(conv2.bias)
                    _linearize(norm1)
                    _linearize(norm2)
            _linearize(part.conv_norm_out)
            for conv in (part.conv_in, part.conv_out):
                conv.weight[:, pairs] = 0 if conv is part.conv_out else conv.weight[:, pairs]
                nn.init.zeros_(conv.bias)
            part.conv_in.weight[: rest.start] = 0
            part.conv_in.bias[_anchors()] = torch.tensor([_ANCHOR, -_ANCHOR])
            nn.init.zeros_(part.conv_out.weight)
        centre = model.encoder.conv_in.weight[:, :, 1, 1]  # views of the middle taps
        centre[:LATENT_CHANNELS], centre[LATENT_CHANNELS : rest.start - 2] = analysis, -analysis
        model.encoder.conv_in.weight[rest.start : rest.start + len(detail)] = 0
        centre[rest.start : rest.start + len(detail)] = detail
        model.encoder.conv_in.bias[:LATENT_CHANNELS] = -analysis @ mean
        model.encoder.conv_in.bias[LATENT_CHANNELS : rest.start - 2] = analysis @ mean
        model.encoder.conv_in.bias[rest.start : rest.start + len(detail)] = -detail @ mean
        eye = torch.eye(LATENT_CHANNELS)
        model.encoder.conv_out.weight[:LATENT_CHANNELS, pairs, 1, 1] = torch.cat([eye, -eye], 1)
        model.encoder.conv_out.bias[LATENT_CHANNELS:] = 2 * torch.log(torch.tensor(LATENT_NOISE))
        model.decoder.conv_in.weight[pairs, :, 1, 1] = torch.cat([eye, -eye])
        model.decoder.conv_out.weight[:, pairs, 1, 1] = torch.cat([synthesis, -synthesis], 1).float()
        model.decoder.conv_out.bias[:] = mean
    return model


def _anchors() -> slice:
    return slice(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS + 2)


def _linearize(norm: nn.GroupNorm) -> None:
    """Undo the division by the standard deviation from the two anchors. The anchors become +-1."""
    gain = _ANCHOR * (2 / norm.num_channels) ** 0.5
    nn.init.constant_(norm.weight, gain)
    norm.weight[_anchors()] = gain / _ANCHOR
