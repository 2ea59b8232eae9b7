"""Frozen diffusion backbones: networks, autoencoders, noise schedules, prompts and named LoRA adapters.

Everything specific to one kind of backbone is in `families`. Importing this package loads torch; diffusers is loaded
with the first backbone.
"""

from nifi_ns.diffusion._adapters import AdapterName
from nifi_ns.diffusion._backbone import NETWORK_ADAPTER_FILE, NIFI_TINY, VAE_ADAPTER_FILE, Backbone
from nifi_ns.diffusion._compilation import CompileMode, compile_networks, cxx_compiler
from nifi_ns.diffusion._denoiser import Denoiser, LatentBackbone, encode_photos, restore_latents
from nifi_ns.diffusion._prompt import PROMPT_FILE, Embeddings, Prompt
from nifi_ns.diffusion._schedules import Diffusion, FlowMatching
from nifi_ns.diffusion._sources import WEIGHTS, Source, is_hub_id, placement, reading, resolve
from nifi_ns.diffusion.families import (
    Family,
    LatentScaling,
    StableDiffusion,
    StableDiffusion3,
    default_preset,
    register,
)

__all__ = [
    "NETWORK_ADAPTER_FILE",
    "NIFI_TINY",
    "PROMPT_FILE",
    "VAE_ADAPTER_FILE",
    "WEIGHTS",
    "AdapterName",
    "Backbone",
    "CompileMode",
    "Denoiser",
    "Diffusion",
    "Embeddings",
    "Family",
    "FlowMatching",
    "LatentBackbone",
    "LatentScaling",
    "Prompt",
    "Source",
    "StableDiffusion",
    "StableDiffusion3",
    "compile_networks",
    "cxx_compiler",
    "default_preset",
    "encode_photos",
    "is_hub_id",
    "placement",
    "reading",
    "register",
    "resolve",
    "restore_latents",
]
