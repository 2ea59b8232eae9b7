"""Named LoRA adapters on one frozen module, switched on and off per call."""

import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path

AdapterName = Literal["phi_minus", "phi_plus"]
"""phi_minus is the restorer. phi_plus, the critic, learns the distribution of restored images."""
_METADATA_KEY = "lora_adapter_metadata"  # where diffusers >= 0.34 reads the LoraConfig, and so alpha


class Adapters:
    """The adapters of one frozen diffusers model. None, or a name that was not added, selects the model without any."""

    def __init__(self, module: nn.Module, targets: Iterable[str] | str, prefix: str) -> None:
        """
        Args:
            module: a diffusers model that supports adapters (PeftAdapterMixin); its own parameters are frozen.
            targets: the layers to adapt: endings of their names, or a regular expression for whole names.
            prefix: put before each key of a state dict, as in diffusers' `load_lora_weights` ("transformer", "unet").
        """
        self._module: Any = module.requires_grad_(False)
        self._targets = targets if isinstance(targets, str) else list(targets)
        self._prefix = prefix
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._layers: list[Any] = []
        self._active: str | None = None

    def add(self, name: str, rank: int, alpha: float) -> None:
        """Add an adapter without effect yet (B = 0, A Gaussian), in float32, so that small updates are not lost."""
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        if name in self._parameters:
            raise NifiError(f"the backbone already has an adapter {name!r}")
        scale: Any = alpha  # peft annotates an int, but accepts any number
        config = LoraConfig(r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=self._targets)
        with warnings.catch_warnings():  # peft warns about a second adapter on one model
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            self._module.add_adapter(config, name)
        marks = (f".lora_A.{name}.", f".lora_B.{name}.")
        added = [p for key, p in self._module.named_parameters() if any(mark in key for mark in marks)]
        for parameter in added:
            parameter.data = parameter.data.float()
        self._parameters[name] = added
        for parameter in itertools.chain(*self._parameters.values()):
            parameter.requires_grad_(True)  # peft leaves only the newest adapter trainable
        self._layers = [layer for layer in self._module.modules() if isinstance(layer, BaseTunerLayer)]
        self._active = name
        self.use(None)

    @property
    def names(self) -> list[str]:
        """Names of the added adapters."""
        return list(self._parameters)

    def use(self, name: str | None) -> None:
        """Switch adapter `name` on and all others off, until the next call. Not thread-safe."""
        name = name if name in self._parameters else None
        if name == self._active:
            return
        # peft makes the active adapter trainable and freezes the others. But which parameters train does not depend on
        # which adapter runs now, and a parameter that is frozen when backward reaches it gets no gradient.
        trainable = [(p, p.requires_grad) for p in itertools.chain(*self._parameters.values())]
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        self._active = name

    def checkpoint_gradients(self, save_context: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Recompute activations in backward passes from now on, instead of storing them.

        They are recomputed with the adapter of the forward pass, even if another is on by then.

        Args:
            save_context: called in the forward pass; returns a context that restores any other state of the module as
                it is at that time.
        """
        from torch.utils.checkpoint import checkpoint

        def run(block: nn.Module, *inputs: Any) -> Any:
            name, saved = self._active, save_context()

            @contextmanager
            def recompute() -> Iterator[None]:
                self.use(name)
                with saved:
                    yield

            return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), recompute()))

        self._module.enable_gradient_checkpointing(run)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return the adapter's parameters, in the order of the module's layers; none if it was not added."""
        return list(self._parameters.get(name, []))

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """Return the adapter's tensors, without a copy, under diffusers' keys, `prefix.layer.lora_A.weight`.

        Empty if it was not added.
        """
        from peft import get_peft_model_state_dict

        if name not in self._parameters:
            return {}
        return {f"{self._prefix}.{k}": v for k, v in get_peft_model_state_dict(self._module, adapter_name=name).items()}

    def load_state_dict(self, name: str, state: dict[str, Tensor]) -> None:
        """Copy the tensors of `state` that have this module's prefix into the adapter. They must be complete.

        Raises:
            NifiError: if layers are missing or unknown, or shapes differ (another backbone or rank).
        """
        own = self.state_dict(name)
        given = {k: v for k, v in state.items() if k.startswith(f"{self._prefix}.")}
        for key in sorted(own.keys() ^ given.keys()):
            problem = "lacks" if key in own else "has an unknown"
            raise NifiError(f"this adapter {problem} {key}: it is for another backbone, or for other target layers")
        with torch.no_grad():
            for key, tensor in own.items():
                if tensor.shape != given[key].shape:
                    expected, actual = tuple(tensor.shape), tuple(given[key].shape)
                    raise NifiError(f"this adapter's {key} is {actual}, expected {expected}: another backbone or rank")
                tensor.copy_(given[key])

    def save(self, path: Path, name: str) -> None:
        """Write the adapter like diffusers' `save_lora_weights`: prefixed keys, and the LoraConfig in the metadata."""
        from diffusers.loaders.lora_base import LoraBaseMixin

        config = self._module.peft_config[name].to_dict()
        with atomic_path(path) as temporary:
            LoraBaseMixin.write_lora_layers(
                state_dict={key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict(name).items()},
                save_directory=str(temporary.parent),
                weight_name=temporary.name,
                lora_adapter_metadata={
                    f"{self._prefix}.{key}": sorted(value) if isinstance(value, set) else value
                    for key, value in config.items()
                },
                is_main_process=True,
                save_function=None,  # pyright: ignore[reportArgumentType]  # None is valid but not annotated
                safe_serialization=True,
            )

    def load(self, path: Path, name: str) -> None:
        """Add adapter `name` with the rank, alpha and weights of the file at `path`.

        Raises:
            NifiError: if the file is missing, damaged (CorruptFileError) or made for another backbone.
        """
        state, config = read_adapter(path, self._prefix)
        if name not in self._parameters:
            self.add(name, config["r"], config["lora_alpha"])
        self.load_state_dict(name, state)

    def add_tensors(self, name: str, state: dict[str, Tensor], source: str) -> None:
        """Add adapter `name` from the tensors of `state` that have this module's prefix, with their rank as alpha.

        Layers without tensors are not adapted.

        Raises:
            NifiError: if layers are unknown, shapes differ, or no tensor has the prefix; the error names `source`.
        """
        own = {k: v for k, v in state.items() if k.startswith(f"{self._prefix}.")}
        rank = _rank(own, self._prefix, source)
        self.add(name, rank, rank)
        self.load_state_dict(name, {**self.state_dict(name), **own})


def read_adapter(path: Path, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict, and the LoraConfig as a dict, of an adapter file in diffusers' layout.

    Raises:
        NifiError: if the file is missing, damaged (CorruptFileError) or contains no adapter.
    """
    if not path.is_file():
        raise NifiError(f"no adapter at {path}")
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(f"{path} is damaged ({error}); train or download it again") from error
    config = {k.removeprefix(f"{prefix}."): v for k, v in metadata.items()}
    if "r" not in config:  # an older trainer's file: rank from the shapes, and alpha equal to it, like diffusers
        config["r"] = config["lora_alpha"] = _rank(state, prefix, str(path))
    return state, config


def _rank(state: dict[str, Tensor], prefix: str, source: str) -> int:
    """Return the common rank of the tensors with that prefix."""
    ranks = {v.shape[0] for k, v in state.items() if k.startswith(f"{prefix}.") and ".lora_A." in k}
    if len(ranks) != 1:
        raise NifiError(f"{source} holds no LoRA adapter of one rank for the {prefix}")
    return ranks.pop()
