"""What inductor's Triton kernels of a training step are on an H100, made without one.

    python experiments/gpu/triton_without_a_card.py FOLDER [ARCH]

With `triton` installed next to a CPU build of PyTorch. The step is traced on fake tensors of a CUDA
device (tests/without_a_card); each kernel is compiled to a cubin for sm_90.
"""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.without_a_card.watch import provide_cuda

provide_cuda(Path(sys.argv[1]))

import torch  # noqa: E402

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 10**9,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
)
torch.cuda.get_device_properties = lambda *_: H100
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda._lazy_init = lambda: None
torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
torch.cuda.set_rng_state = lambda *_: None
torch.cuda.set_device = lambda *_: None
torch.cuda.synchronize = lambda *_: None
torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)
# Dynamo wants a function of its own for each
torch.cuda._exchange_device = lambda i: i
torch.cuda._maybe_exchange_device = lambda i: i
torch._C._cuda_getCurrentRawStream = lambda *_: 0
torch.version.cuda = "13.0"

import torch.utils._triton  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._dynamo.device_interface import CudaInterface  # noqa: E402
from torch._functorch.aot_autograd import make_boxed_func  # noqa: E402
from torch._inductor import async_compile  # noqa: E402
from torch._inductor import config as inductor  # noqa: E402
from torch._inductor.async_compile import _load_triton_kernel_from_source  # noqa: E402
from torch._inductor.compile_fx import compile_fx_inner  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402
from torch._inductor.runtime import triton_helpers  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.compiler import make_backend  # noqa: E402

from nanochat.commands.configs import compose_choice  # noqa: E402
from nanochat.gpt import GPT, build_arch, from_depth, loss  # noqa: E402

for name in ("exchange_device", "maybe_exchange_device"):
    setattr(CudaInterface, name, staticmethod(lambda i: i))
CudaInterface.current_device = staticmethod(lambda: 0)
CudaInterface.is_available = staticmethod(lambda: True)
CudaInterface.get_device_properties = staticmethod(lambda *_: H100)
CudaInterface.get_compute_capability = staticmethod(lambda *_: 90)
CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H100)
torch.utils._triton.triton_backend = lambda: make_backend(GPUTarget("cuda", 90, 32))
triton_helpers.set_driver_to_gpu = lambda: None
made: Counter[str] = Counter()


def triton(self, kernel_name: str, source_code: str, device_str: str = "cuda"):
    """Compiles one configuration to a cubin, and loads nothing onto a card."""
    kernel = _load_triton_kernel_from_source(kernel_name, source_code)
    kernel.configs = kernel.configs[:1]  # of those that a card would choose from by timing
    kernel.precompile(warm_cache_only=True)
    for result in kernel.compile_results:
        made[kernel_name.rsplit("_", 1)[0]] += "cubin" in result.kernel.asm
    return kernel


def compiled(graph, inputs):
    """Inductor's code of the graph is made; what runs is the graph, since the inputs are fake."""
    compile_fx_inner(graph, inputs)
    return make_boxed_func(graph.forward)


async_compile.AsyncCompile.triton = triton
inductor.compile_threads = 1
inductor.fx_graph_cache = False
inductor.use_static_triton_launcher = False  # keeps what Triton made, with its `asm`
backend = aot_autograd(
    fw_compiler=compiled, bw_compiler=compiled, decompositions=select_decomp_table()
)

arch = sys.argv[2] if len(sys.argv) > 2 else "modern"
CARD = torch.device("cuda", 0)
with FakeTensorMode(allow_non_fake_inputs=True):
    built = build_arch(compose_choice("arch", arch))
    with CARD:
        gpt = GPT(from_depth(2, vocab_size=512, sequence_len=256, arch=built))
    gpt.compute_dtype = torch.bfloat16
    gpt.grow_rope(256)
    idx = torch.zeros(2, 256, dtype=torch.long, device=CARD)
    z = torch.zeros(512, 512, dtype=torch.bfloat16, device=CARD)
    torch.compile(loss.capped_loss_and_grad, backend=backend, dynamic=False)(z, idx.flatten(), 15.0)
    print("a chunk of the loss:", dict(made), flush=True)
    trunk = torch.compile(gpt._run_trunk, backend=backend, dynamic=False, fullgraph=True)
    trunk(idx, gpt.cos[:, :256], gpt.sin[:, :256]).sum().backward()
    print("with the trunk, forward and backward:", dict(made))
