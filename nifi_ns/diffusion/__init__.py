"""Frozen diffusion backbones: networks, noise schedules, prompts and named LoRA adapters."""

from nifi_ns.diffusion._backbone import NETWORK_ADAPTER_FILE, NIFI_TINY, VAE_ADAPTER_FILE, AdapterName, Backbone
from nifi_ns.diffusion._compilation import CompileMode, cxx_compiler
from nifi_ns.diffusion._denoiser import Adapter, Denoiser, LatentBackbone, encode_views, restore_latents
from nifi_ns.diffusion._families import StableDiffusion, StableDiffusion3
from nifi_ns.diffusion._prompt import PROMPT_FILE, Embeddings, Prompt
from nifi_ns.diffusion._schedules import Diffusion, FlowMatching
from nifi_ns.diffusion._sources import WEIGHTS, Source, placement, reading, resolve

__all__ = [
    "NETWORK_ADAPTER_FILE",
    "NIFI_TINY",
    "PROMPT_FILE",
    "VAE_ADAPTER_FILE",
    "WEIGHTS",
    "Adapter",
    "AdapterName",
    "Backbone",
    "CompileMode",
    "Denoiser",
    "Diffusion",
    "Embeddings",
    "FlowMatching",
    "LatentBackbone",
    "Prompt",
    "Source",
    "StableDiffusion",
    "StableDiffusion3",
    "cxx_compiler",
    "encode_views",
    "placement",
    "reading",
    "resolve",
    "restore_latents",
]
