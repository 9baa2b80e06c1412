"""A CUDA device that is none: tensors that say ``cuda:0`` and hold a CPU tensor, with CUDA's rules on mixing devices.

``import pretend_cuda`` first, then use torch as on a GPU. ``PRETEND_GPU=T4`` (no native bf16) or ``A100`` (default).
It finds: CPU tensors that meet CUDA tensors, ``.numpy()`` on CUDA tensors, generators of the wrong device, and branches
that only CUDA takes (with the CPU's kernels, so numbers can be compared). It does not find: what CUDA kernels do
otherwise (rounding, nondeterminism, memory, unsupported dtypes, speed).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

# What a CPU build of torch lacks: it has to be there before torch looks for it.
LIBRARY = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
struct PretendGuard final : public NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return Device(DeviceType::CUDA, 0); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
};
C10_REGISTER_GUARD_IMPL(CUDA, PretendGuard);
}
namespace at {
struct CUDAHooks : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks);
namespace accelerator {  // in place of torch's own: to autograd it is a device without streams, as the CPU is
std::optional<c10::DeviceType> getAccelerator(bool) { return std::nullopt; }
bool isAccelerator(c10::DeviceType) { return false; }
}
}"""
home = Path(importlib.util.find_spec("torch").origin).parent
library = Path(tempfile.gettempdir()) / f"libpretend-{version('torch')}-{os.getuid()}.so"
if not library.exists():
    partial = library.with_suffix(f".{os.getpid()}")  # two processes may build it at the same time
    paths = [f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-lc10", "-ltorch_cpu"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-", *paths, "-o", str(partial)]
    subprocess.run(command, input=LIBRARY, text=True, check=True)
    os.replace(partial, library)
ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

GPU = os.environ.get("PRETEND_GPU", "A100")
CUDA = torch.device("cuda:0")
CALLS: Counter[str] = Counter()  # ops that ran on the device, by name
RealGenerator = torch.Generator
GENERATORS: list[Generator] = []  # of the calls in progress
aten = torch.ops.aten

COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::lift_fresh", "aten::detach"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
# Kernels that no TensorIterator serves: there even a CPU scalar is refused.
STRICT = {
    "aten::cat",
    "aten::stack",
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::embedding",
    "aten::gather",
    "aten::scatter",
    "aten::index_select",
    "aten::index_add_",
    "aten::index_copy",
    "aten::_fused_adamw_",
}


class CudaTensor(torch.Tensor):
    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        assert type(inner) in (torch.Tensor, torch.nn.Parameter), type(inner)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __deepcopy__(self, memo):
        made = CudaTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True
        memo[id(self)] = made
        return made

    def data_ptr(self):
        return self.inner.data_ptr()

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, **_):
        raise TypeError("PRETEND: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_):
        return self.numpy()

    def __repr__(self, **_):
        shown = repr(self.inner.detach())
        return shown[:-1] + f", device='{CUDA}'" + (", requires_grad=True)" if self.requires_grad else ")")


def is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def refuse(func, tensors) -> None:
    where = " and ".join(sorted({f"{t.device}" for t in tensors}))
    shapes = [(str(t.device), tuple(t.shape), str(t.dtype)[6:]) for t in tensors]
    raise RuntimeError(f"PRETEND: Expected all tensors to be on the same device, but found {where} in {func}: {shapes}")


def check_devices(func, args, kwargs, tensors) -> None:
    name, on_gpu = func._schema.name, [isinstance(t, CudaTensor) for t in tensors]
    if name in COPIES or not any(on_gpu) or all(on_gpu):
        return
    if name in INDEXING:
        home, rest = isinstance(args[0], CudaTensor), tree_flatten(args[1])[0]
        if not home and any(isinstance(t, CudaTensor) for t in rest):
            raise RuntimeError(
                f"PRETEND: indices should be either on cpu or on the same device as the indexed tensor (cpu) in {func}"
            )
        if len(args) > 2 and isinstance(args[2], CudaTensor) != home and args[2].dim():
            refuse(func, [args[0], args[2]])
        return
    strict = name in STRICT
    for t, gpu in zip(tensors, on_gpu):
        if not gpu and t.device.type == "cpu" and (strict or t.dim()):
            refuse(func, tensors)
    written = [arg for arg, a in zip(args, func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    if any(isinstance(t, torch.Tensor) and not isinstance(t, CudaTensor) for t in tree_flatten(written)[0]):
        refuse(func, tensors)


def check_generator(func, kwargs, args, gpu: bool) -> None:
    if any(isinstance(g, RealGenerator) for g in (*args, *kwargs.values())) and GENERATORS:
        if GENERATORS[-1].pretends != gpu:
            raise RuntimeError(f"PRETEND: Expected a '{'cuda' if gpu else 'cpu'}' device type for generator in {func}")


def dispatch(func, args, kwargs):
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    gpu, device = any(isinstance(t, CudaTensor) for t in tensors), kwargs.get("device")
    made_on_gpu = is_cuda(device) if device is not None else gpu
    check_generator(func, kwargs, args, gpu or is_cuda(device))
    if not gpu and not is_cuda(device):
        return func(*args, **kwargs)
    check_devices(func, args, kwargs, tensors)
    CALLS[str(func)] += 1
    outer = {id(t.inner): t for t in tensors if isinstance(t, CudaTensor)}

    def inner(x):
        if isinstance(x, CudaTensor):
            return x.inner
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == "cuda" else x

    args, kwargs = tree_map(inner, args), tree_map(inner, kwargs)
    kwargs.pop("pin_memory", None)
    if func in (aten._log_softmax.default, aten._softmax.default) and args[2]:  # half to float, which only CUDA has
        args = (args[0].float(), args[1], False)
    if func is aten.native_dropout.default and args[0].device.type == "cpu":
        args = (args[0], args[1], True if args[2] is None else args[2])
    plain = {id(t): t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
    out = func(*args, **kwargs)

    def back(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in outer:
            return outer[id(x)]
        return x if id(x) in plain or not made_on_gpu else CudaTensor(x)

    return tree_map(back, out)


class PretendMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (
            not types and not GENERATORS and not is_cuda((kwargs or {}).get("device"))
        ):  # the CPU's alone, without a look
            return func(*args, **(kwargs or {}))
        return dispatch(func, args, kwargs or {})


class Asked(TorchFunctionMode):
    """Notes the generator of a call, which the dispatcher hands on as another object."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = [g for g in (*args, *(kwargs or {}).values()) if isinstance(g, Generator)]
        GENERATORS.extend(found)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            del GENERATORS[len(GENERATORS) - len(found) :]


class Generator(RealGenerator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.pretends = is_cuda(device)
        return made

    @property
    def device(self):
        return CUDA if self.pretends else torch.device("cpu")


class Properties:
    name, major, minor, total_memory, multi_processor_count = f"Pretend {GPU}", 7 if GPU == "T4" else 8, 5, 15 << 30, 40


def install() -> None:
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") goes by way of the CPU
    state = torch.zeros(16, dtype=torch.uint8)
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "get_device_name": lambda *_: Properties.name,
        "synchronize": lambda *_: None,
        "get_device_properties": lambda *_: Properties,
        "get_device_capability": lambda *_: (Properties.major, 5),
        "is_bf16_supported": lambda including_emulation=True: GPU != "T4" or including_emulation,
        "mem_get_info": lambda *_: (14 << 30, 15 << 30),
        "memory_allocated": lambda *_: 0,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "get_rng_state": lambda *_: state,
        "get_rng_state_all": lambda: [state],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda *_: None,
        "set_device": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch.Generator = Generator
    # Both would take C++ shortcuts past the dispatcher.
    torch.Tensor.cuda = lambda self, *_, **__: self.to(CUDA)
    torch.nn.Module.cuda = lambda self, *_: self.to(CUDA)
    torch.autograd.set_multithreading_enabled(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a parameter keeps its class
    Asked().__enter__()
    PretendMode().__enter__()


install()
