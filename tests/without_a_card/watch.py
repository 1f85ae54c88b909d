"""Fake tensors on a CUDA device, and what of their operations would make a card wait or compute in
the wrong place or dtype.

`provide_cuda` has to come before torch is imported: PyTorch looks once for the hooks of CUDA.
"""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src" / "nanochat"


def provide_cuda(folder: Path) -> None:
    """Compile fake_cuda.cpp into `folder`, 3 s, and load it beneath PyTorch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None and "torch" not in sys.modules
    torch_folder, library = Path(spec.origin).parent, folder / "fake_cuda.so"
    how = ["-std=c++20", "-O0", "-shared", "-fPIC", "-o", str(library)]
    where = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", *how, str(HERE / "fake_cuda.cpp"), *where], check=True)
    for path in (torch_folder / "lib" / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def make_watch():
    """The class, whose base is known once torch is imported."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    reads = {  # the host waits for a value, or for the size of what comes out
        aten._local_scalar_dense: "a value is read on the host",
        aten.nonzero: "the size follows from values (a boolean mask as index, nonzero)",
        aten.masked_select: "the size follows from values",
        aten.unique_consecutive: "the size follows from values",
        aten._unique2: "the size follows from values",
        aten.repeat_interleave: "the size follows from values; give output_size",
        aten.equal: "a value is read on the host",
    }
    products = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}
    moves = {aten._to_copy, aten.to}  # the second where nothing is differentiated
    copies = {aten.copy_, aten.lift_fresh, aten._pin_memory, aten.set_}

    class Watch(TorchDispatchMode):
        """Collects `found`: (place, what) of every operation that a step on a card should not have.

        `dtype` is that of the products. An operation that no fake tensor can do (a value is read)
        gets a made-up result, so that the step goes on and all its faults are found.
        """

        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype, self.found, self.operations = dtype, set(), 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            tensors = [x for x in _leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            on_card = [x for x in tensors if x.device.type == "cuda"]
            packet = func.overloadpacket
            self.operations += bool(on_card)
            self.look(func, tensors, args, kwargs)
            if on_card and packet is aten._local_scalar_dense:
                return 1 if not tensors[0].dtype.is_floating_point else 1.0
            if on_card and packet is aten.equal:
                return True
            if packet in moves and not on_card and hasattr(tensors[0], "constant"):
                tensors[0].constant = None  # of one element: PyTorch would copy it for real
            out = func(*args, **kwargs)
            if packet in moves and not on_card and _card(out):
                self._copied(kwargs.get("non_blocking"), tensors[0], "to the card")
            return out

        def look(self, func, tensors, args, kwargs) -> None:
            packet = func.overloadpacket
            on_card = [x for x in tensors if x.device.type == "cuda"]
            if not on_card:
                return
            if packet in reads and kwargs.get("output_size") is None:
                self._note(reads[packet])
            if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
                at = [x for x in args[1] if isinstance(x, torch.Tensor)]
                masks = [x for x in at if x.dtype == torch.bool]
                if masks and packet is aten.index:
                    self._note("a boolean mask as index: the host waits for its count")
                if any(x.device.type == "cpu" for x in at):
                    self._note("an index on the CPU")
            elif packet is aten.copy_:
                to, source = tensors[:2]
                if to.device.type != source.device.type:
                    self._copied(_third(args, kwargs), source, f"from {source.device.type}")
            elif packet in moves:
                if kwargs.get("device") is not None and kwargs["device"].type == "cpu":
                    self._copied(kwargs.get("non_blocking"), None, "to the CPU")
            elif packet not in copies and any(x.device.type == "cpu" and x.dim() for x in tensors):
                self._note("a tensor on the CPU among those of the card")
            if packet in products or "scaled_dot_product" in str(packet):
                wide = [x for x in on_card if x.dtype.is_floating_point and x.dtype != self.dtype]
                flash = [x for x in wide if x.dim() > 3 or packet in products]
                if flash:
                    self._note(f"a product in {wide[0].dtype}")

        def _copied(self, without_waiting, source, what: str) -> None:
            if not without_waiting:
                self._note(f"a copy {what} that the host waits for")

        def _note(self, what: str) -> None:
            self.found.add((_place(), what))

    return Watch


def _third(args, kwargs) -> bool:
    return kwargs.get("non_blocking") or (len(args) > 2 and args[2])


def _leaves(values):
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _card(out) -> bool:
    return hasattr(out, "device") and out.device.type == "cuda"


def _place() -> str:
    """The innermost of our functions: file:function."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            return f"{path.relative_to(SOURCE)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
