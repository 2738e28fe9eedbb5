"""Where the arithmetic happens, and with how many bits."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass

import torch


class DeviceError(ValueError):
    """A device or a precision that this machine does not have; the message says how to go on."""


@dataclass
class Arithmetic:
    """A device, a precision ("fp32", "bf16" or "fp16"), and the loss scaling that float16 needs."""

    device: torch.device
    precision: str
    scaler: torch.amp.GradScaler

    def autocast(self):
        """A context in which matrix products are done in 16 bits (nothing changes for fp32)."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def move(self, batch: dict) -> dict:
        """The tensors of a batch on this device; a batch of several tasks is a dict of dicts."""
        return {key: self.move(value) if isinstance(value, dict) else value.to(self.device, non_blocking=True)
                for key, value in batch.items()}


def choose(device: str = "auto", precision: str = "auto") -> Arithmetic:
    """The device asked for, and a precision that fits it.

    "auto" takes a GPU if there is one.  On a CPU the precision is float32 unless another is asked for, so that results
    don't depend on the processor.  On a GPU it is bfloat16, or float16 with loss scaling where there is no bfloat16.

    Raises DeviceError when a GPU is asked for and absent.
    """
    has_gpu = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    if device.startswith("cuda") and not has_gpu:
        raise DeviceError("a GPU was asked for, but PyTorch sees none here: leave --device out to use the CPU, "
                          "or install PyTorch's CUDA build ('minbert doctor' shows what is there)")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"unknown device {device!r}: known are auto, cpu, cuda") from None
    if chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {device!r} is not supported here: known are auto, cpu, cuda")
    if (chosen.index or 0) >= torch.cuda.device_count() and chosen.type == "cuda":
        raise DeviceError(f"there is no GPU number {chosen.index} here: known are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if precision == "auto":
        if chosen.type == "cpu":
            precision = "fp32"
        else:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # float16 reaches only down to 6e-8: gradients are scaled up so that small ones don't vanish.
    return Arithmetic(chosen, precision, torch.amp.GradScaler(chosen.type, enabled=precision == "fp16"))


def describe(device: torch.device) -> dict:
    """What to write down about a device; no name of the machine."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"type": "cpu", "name": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_mb(device: torch.device) -> float | None:
    """The largest memory in use so far: of the GPU's tensors, or of the whole process on a CPU.  None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:                              # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
