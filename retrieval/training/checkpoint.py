"""The state of a training on disk: one safetensors file, replaced as a whole.

No pickle: a checkpoint may come from anywhere. Tensors are named by what they belong to, the rest
is JSON: settings in the file's own header, which may not grow beyond 100 MB, and the state, with a
row for every step, as the bytes of a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mmsearch.errors import StorageError, TrainingError
from mmsearch.indexes.base import replacing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Checkpoint", "optimizer_state", "restore_optimizer"]

FORMAT = 2
STATE = "state"


@dataclass(slots=True)
class Checkpoint:
    """Everything that decides how a training goes on.

    Attributes:
        tensors: by name: `model.*`, `average.*`, `best.*`, `optimizer.*`, `memory.*`.
        state: counters, scores and the history, as JSON values.
        settings: what must be equal when a training is continued.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file; a crash leaves the previous one.

        Raises:
            StorageError: the disk is full or read-only.
        """
        header = {"format": FORMAT, "settings": self.settings}
        tensors = {name: value.contiguous().cpu() for name, value in self.tensors.items()}
        state = bytearray(json.dumps(self.state).encode())
        tensors[STATE] = torch.frombuffer(state, dtype=torch.uint8)
        data = save(tensors, metadata={"mmsearch": json.dumps(header)})
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise StorageError(
                f"The checkpoint {path} cannot be written: {error.strerror or error}. The training "
                "can be continued from the last one with --resume."
            ) from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            TrainingError: there is none, or it is damaged.
        """
        cls.require(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["mmsearch"])
                if header["format"] != FORMAT:
                    raise TrainingError(
                        f"The checkpoint {path} was made by another version of mmsearch (format "
                        f"{header['format']}, this one reads {FORMAT}). Start without --resume."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads(tensors.pop(STATE).numpy().tobytes())
            return cls(tensors, state, header["settings"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise TrainingError(
                f"The checkpoint {path} is damaged ({error}). Start again without --resume."
            ) from error

    @staticmethod
    def require(path: Path) -> None:
        """Raise `TrainingError` where there is no checkpoint."""
        if not path.is_file():
            raise TrainingError(
                f"There is no training to continue at {path}. Start it without --resume."
            )

    def refuse_other(self, settings: Mapping[str, Any]) -> None:
        """Raise `TrainingError` where a training with these settings is not the one saved here."""
        for name in sorted(settings.keys() | self.settings.keys()):
            before, now = self.settings.get(name), settings.get(name)
            if before != now:
                raise TrainingError(
                    f"This training cannot be continued with another {name}: it began with "
                    f"{_differing(before, now)}, now it is {_differing(now, before)}. Use the same "
                    "options, or start without --resume."
                )

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors called `prefix.NAME`, by NAME."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's tensors as `PARAMETER|KEY`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Give an optimizer the state that `optimizer_state` returned."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("|")
        parameter = parameters[parameter_name]
        # Counters of steps stay on the CPU, as the optimizer itself keeps them.
        where = "cpu" if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.to(where)


def _differing(value: Any, other: Any) -> str:  # noqa: ANN401
    """Return a value for people; of two tables only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if other.get(k) != v) or "nothing"
    return str(value)
