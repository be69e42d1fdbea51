"""A CUDA device that is pretended on the CPU, and counts what a real one would have to do.

Tensors on it are `Pretended`: they compute on the CPU, but say that they are on cuda:0, so that
branches on the device run. For PyTorch's C++ code the device is one whose backend is written in
Python (PrivateUse1), since a build for the CPU has no CUDA device that gradients could flow
through. `begin` changes PyTorch for the rest of the process: call it in a process of its own.

What is not pretended: kernels (each operation counts as one launch), time, memory within an
operation, compilation (`torch.compile` returns what it is given) and streams (everything runs in
the order of the program).
"""

import contextlib
import ctypes
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

_CUDA = torch.device("cuda", 0)
_NAME = "pretended"
# More than any test needs; "auto" of caches asks for it.
_MEMORY_BYTES = 80 * 10**9
_AUTOCAST = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]

# Operations of autocast on CUDA, from PyTorch's list: in half precision, and in float32.
_IN_HALF = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input"),
    *("conv_transpose3d.input", "convolution", "linear", "matmul", "mm", "bmm", "mv", "addmm"),
    *("addmv", "addbmm", "baddbmm", "chain_matmul", "prelu", "scaled_dot_product_attention"),
)
_IN_FLOAT = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p"),
    *("reciprocal", "rsqrt", "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor"),
    *("pow.Scalar", "softplus", "layer_norm", "group_norm", "norm.Scalar", "nll_loss"),
    *("nll_loss2d", "cosine_similarity", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("kl_div", "binary_cross_entropy_with_logits", "dist", "renorm", "logsumexp"),
    *("cumprod", "cumsum", "prod", "prod.dim_int", "sum", "sum.dim_IntList"),
    *("softmax.int", "log_softmax.int", "upsample_bilinear2d", "upsample_trilinear3d"),
    *("grid_sampler",),
)

# Operations whose result has a size, or is a number, that the host must wait for.
_WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"),
    *("unique_consecutive", "equal", "bincount", "is_nonzero", "histc", "_histogramdd_bin_edges"),
    "repeat_interleave",
}
# In place, without looking at what was there.
_ONLY_WRITE = {"fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
# Views and questions: nothing is launched.
_FREE = {
    *("detach", "alias", "lift_fresh", "set_", "is_same_size", "_nested_tensor_size"),
    *("empty_like", "new_empty", "new_empty_strided", "empty", "empty_strided", "record_stream"),
    *("is_pinned", "_unsafe_view", "_reshape_alias"),
}


class DeviceMixError(RuntimeError):
    """An operation has tensors on the device and in the host's memory."""


@dataclass(kw_only=True)
class Counts:
    """What the device had to do.

    Attributes:
        launches: Operations on the device, without views.
        syncs: How often the host waited for the device, by reason; waits of threads that work ahead
            are not among them.
        read_bytes: Bytes of the tensors that operations read.
        written_bytes: Bytes of the tensors that operations wrote.
        to_device_bytes: Bytes copied from the host.
        to_host_bytes: Bytes copied to the host.
        operations: Launches by name of the operation.
        places: Lines of code that made the host wait, each with how often.
    """

    launches: int = 0
    syncs: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)

    @property
    def waits(self) -> int:
        """How often the host waited."""
        return self.syncs.total()


class Device:
    """The pretended device: its memory, and everything that has been counted."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.held_bytes = 0
        self.peak_bytes = 0
        self.quiet = 0
        self._lock = threading.RLock()
        self._known: dict[int, int] = {}
        self._pinned: dict[int, int] = {}

    def restart(self) -> None:
        """Counts from zero; the peak begins at what is held now."""
        with self._lock:
            self.counts = Counts()
            self.peak_bytes = self.held_bytes

    def wait(self, why: str) -> None:
        """Notes that the host waits for the device."""
        # A thread of the program's own lets the others go on; those of autograd are no such ones.
        ahead = threading.current_thread() is not threading.main_thread()
        if ahead and type(threading.current_thread()) is threading.Thread:
            return
        with self._lock:
            self.counts.syncs[why] += 1
            self.counts.places[f"{_place()}: {why}"] += 1

    def launch(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Notes an operation and what it moved."""
        with self._lock:
            self.counts.launches += 1
            self.counts.operations[name] += 1
            self.counts.read_bytes += sum(map(_bytes, read))
            self.counts.written_bytes += sum(map(_bytes, written))

    def hold(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor until nothing uses it any more."""
        storage = tensor.untyped_storage()
        with self._lock:
            size, key = storage.nbytes(), storage._cdata
            if key in self._known:
                return
            self._known[key] = size
            self.held_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        with self._lock:
            self.held_bytes -= self._known.pop(key)

    def pin(self, tensor: Tensor) -> Tensor:
        """Marks a tensor of the host as page-locked."""
        storage = tensor.untyped_storage()
        with self._lock:
            self._pinned[storage.data_ptr()] = storage.nbytes()
        weakref.finalize(storage, self._pinned.pop, storage.data_ptr(), None)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host is page-locked."""
        # By its place in memory: a tensor may have been an array in between.
        place = tensor.untyped_storage().data_ptr()
        with self._lock:
            return any(first <= place < first + size for first, size in self._pinned.items())

    def to_device(self, source: Tensor, *, non_blocking: bool) -> None:
        """Notes a copy from the host."""
        with self._lock:
            self.counts.to_device_bytes += _bytes(source)
            self.counts.written_bytes += _bytes(source)
            self.counts.launches += 1
            self.counts.operations["copy from the host"] += 1
        if not self.is_pinned(source):
            self.wait("copy from memory that is not pinned")
        elif not non_blocking:
            self.wait("blocking copy from the host")

    def to_host(self, source: Tensor, target: Tensor | None, *, non_blocking: bool) -> None:
        """Notes a copy to the host."""
        with self._lock:
            self.counts.to_host_bytes += _bytes(source)
            self.counts.read_bytes += _bytes(source)
            self.counts.launches += 1
            self.counts.operations["copy to the host"] += 1
        if not non_blocking or (target is not None and not self.is_pinned(target)):
            self.wait("copy to the host")


DEVICE = Device()


class Pretended(Tensor):
    """A tensor in the CPU's memory that says it is on cuda:0."""

    _inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        """Stands for a tensor of the host, which nothing else may use from now on."""
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(_NAME, 0),
            requires_grad=False,
        )
        made._inner = inner
        DEVICE.hold(inner)
        return made

    device = property(lambda _: _CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    def __repr__(self, **_: object) -> str:
        return f"Pretended({self._inner})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """As Tensor.to; the device that it is on already is no reason for a copy."""
        if args and isinstance(args[0], Pretended):
            args = (args[0].dtype, *args[1:])
        args = tuple(a for a in args if not (_is_device(a) and torch.device(a).type == "cuda"))
        if _is_device(kwargs.get("device")) and torch.device(kwargs["device"]).type == "cuda":
            del kwargs["device"]
        if not args and not set(kwargs) - {"non_blocking"}:
            return self
        if args and isinstance(args[0], bool):  # what follows a device
            kwargs |= dict(zip(("non_blocking", "copy"), args, strict=False))
            args = ()
        return super().to(*args, **kwargs)

    def cuda(self, *_: object, **__: object) -> Tensor:  # type: ignore[override]
        """The tensor itself."""
        return self

    def tolist(self) -> Any:
        """The values, copied to the host."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As on CUDA, an error unless forced.

        Raises:
            TypeError: It was not forced.
        """
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy: call .cpu() first")

    def __array__(self, *_: object, **__: object) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                made._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = made
        found: Tensor = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)

    def record_stream(self, _: object) -> None:
        """Nothing: streams are not pretended."""

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    # In inference mode, PyTorch does not take operations apart before they arrive here.
    if func._can_decompose():
        taken_apart = func.decompose(*args, **kwargs)
        if taken_apart is not NotImplemented:
            return taken_apart
    if name == "copy_":
        return _copy(*args, **kwargs)
    device = kwargs.get("device")
    to_host = name == "_to_copy" and device is not None and torch.device(device).type == "cpu"
    if to_host:
        return _to_host(func, args, kwargs)
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    args = _indices_on_device(args) if name in _INDEXING else args
    every = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    _check_mix(func, every, kwargs)
    kwargs.pop("pin_memory", None)
    given = tree_map(_unwrapped, tuple(args)), tree_map(_unwrapped, kwargs)
    found = _as_float(func, *given) if name in _SLOW_IN_HALF else func(*given[0], **given[1])
    known = {id(_unwrapped(x)): x for x in every}
    results = [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]
    _count(func, name, [_unwrapped(x) for x in every], args, results)
    return tree_map(lambda x: _pretended(x, known) if isinstance(x, Tensor) else x, found)


def _pretended(inner: Tensor, known: dict[int, Tensor]) -> Tensor:
    """What stands for a result: of an operation in place, the tensor that it was given."""
    before = known.get(id(inner))
    return Pretended(inner) if before is None else before


def _as_float(func: Any, args: Any, kwargs: Any) -> Any:
    """The same in float32: without instructions for half precision, a CPU takes far longer."""
    half = next((x.dtype for x in args if isinstance(x, Tensor)), torch.float32)
    found = func(*tree_map(lambda x: _cast(x, half, torch.float32), args), **kwargs)
    return tree_map(lambda x: _cast(x, torch.float32, half), found)


def _cast(x: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return x.to(new) if isinstance(x, Tensor) and x.dtype == old else x


_SLOW_IN_HALF = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


def _unwrapped(x: Any) -> Any:
    return x._inner if isinstance(x, Pretended) else x


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def _count(
    func: Any, name: str, tensors: list[Tensor], args: Sequence[Any], results: list[Tensor]
) -> None:
    if name in _WAITING or _masks(name, args):
        DEVICE.wait(name if name != "_local_scalar_dense" else "item")
    if name == "_local_scalar_dense":
        DEVICE.counts.to_host_bytes += sum(map(_bytes, tensors))
        return
    if name in _FREE or _is_view(func):
        return
    read = [] if name in _ONLY_WRITE else tensors
    DEVICE.launch(name, read, results or _written(func, args))


def _written(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """The tensors that an operation without results changes in place."""
    changed = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [_unwrapped(x) for x in tree_flatten(changed)[0] if isinstance(x, Tensor)]


def _masks(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation indexes by a mask, so that the number of voxels must be known."""
    if name not in _INDEXING:
        return False
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    if name == "index" or name == "_unsafe_index":
        return bool(masks)
    # A single value is filled in without counting.
    filled = args[2].numel() == 1 and len([i for i in args[1] if i is not None]) == len(masks)
    return bool(masks) and not filled


def _indices_on_device(args: Sequence[Any]) -> Sequence[Any]:
    """Indices may lie in the host's memory: PyTorch copies them, and waits."""
    if not isinstance(args[0], Pretended):
        return args
    moved: list[Tensor | None] = []
    for index in args[1]:
        if index is not None and not isinstance(index, Pretended):
            DEVICE.to_device(index, non_blocking=False)
            index = Pretended(index.clone())
        moved.append(index)
    return (args[0], moved, *args[2:])


def _check_mix(func: Any, tensors: Sequence[Tensor], kwargs: dict[str, Any]) -> None:
    """Refuses what CUDA refuses: tensors of the host, unless they are single numbers."""
    of_host = [x for x in tensors if not isinstance(x, Pretended) and x.ndim > 0]
    # `step` of optimisers lies on the host by design; foreach operations take lists of them.
    if of_host and len(of_host) < len(tensors):
        shapes = ", ".join(str(tuple(x.shape)) for x in of_host)
        raise DeviceMixError(f"{func}: tensors {shapes} are on the CPU, others on cuda:0")
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in _GENERATORS:
        raise DeviceMixError(f"{func}: the generator is on the CPU, the tensor on cuda:0")


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    here, there = isinstance(target, Pretended), isinstance(source, Pretended)
    inner, given = _unwrapped(target), _unwrapped(source)
    inner.copy_(given)
    if here and there:
        DEVICE.launch("copy_", [given], [inner])
    elif here:
        DEVICE.to_device(source, non_blocking=non_blocking)
    else:
        DEVICE.to_host(given, target, non_blocking=non_blocking)
    return target


def _to_host(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    non_blocking = bool(kwargs.get("non_blocking"))
    inner = _unwrapped(args[0])
    # PyTorch pins the target of a copy that does not block.
    DEVICE.to_host(inner, None, non_blocking=non_blocking)
    found: Tensor = func(inner, *args[1:], **kwargs)
    return DEVICE.pin(found) if non_blocking else found


def _bytes(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _is_device(x: object) -> bool:
    if isinstance(x, torch.device):
        return True
    return isinstance(x, str) and x.split(":")[0] in ("cuda", "cpu", "mps", "meta")


def _place() -> str:
    """The innermost line of code outside PyTorch and this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/torch/" not in path and path != __file__ and "<" not in path:
            return f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "PyTorch"


_GENERATORS: set[int] = set()  # those on the device, by their place in memory
_kept: list[object] = []  # registrations with PyTorch end with their objects


class _Generator(torch.Generator):
    """A generator that may be asked for on cuda:0."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            _GENERATORS.add(made._cdata)
            weakref.finalize(made, _GENERATORS.discard, made._cdata)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        """Nothing more."""


class _Waits:
    """A stream or an event: what it is asked to wait for is counted."""

    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing: everything runs in the order of the program."""

    def synchronize(self) -> None:
        DEVICE.wait("synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0

    def record(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def wait_event(self, *_: object) -> None: ...

    def record_event(self, *_: object) -> "_Waits":
        return _Waits()

    def __enter__(self) -> "_Waits":
        return self

    def __exit__(self, *_: object) -> None: ...


def begin() -> Device:
    """Pretends a CUDA device for the rest of this process.

    Raises:
        RuntimeError: This build of PyTorch has no part that is needed.
    """
    if _kept:
        return DEVICE
    _register_backend()
    _register_operations()
    _register_autocast()
    _patch_cuda()
    _patch_pinning()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.compile = lambda model=None, **_: model if model is not None else (lambda f: f)  # type: ignore[assignment]
    for known in _foreach_types():
        known.append(Pretended)
    return DEVICE


def _foreach_types() -> Iterator[list[Any]]:
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for module in (optimizer, _foreach_utils):
        found = getattr(module, "_foreach_supported_types", None)
        if isinstance(found, list) and Pretended not in found:
            yield found


def _register_backend() -> None:
    """Registers a backend in Python, and its guard for CUDA devices, too."""
    accelerators = torch._C._acc  # type: ignore[attr-defined]

    class Guard(accelerators.DeviceGuard):  # type: ignore[misc, name-defined]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1  # type: ignore[attr-defined]

    class Hooks(accelerators.PrivateUse1Hooks):  # type: ignore[misc, name-defined]
        def is_available(self) -> bool:
            return True

        def has_primary_context(self, _: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    torch.utils.rename_privateuse1_backend(_NAME)
    torch._register_device_module(_NAME, _module())
    guard, hooks = Guard(), Hooks()
    accelerators.register_python_privateuseone_hook(hooks)
    accelerators.register_python_privateuseone_device_guard(guard)
    _kept.extend((guard, hooks))
    # PyTorch keeps one pointer for each type of device; CUDA is the first, this backend the last.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    symbol = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * _LAST_TYPE).in_dll(library, symbol)
    if not guards[_LAST_TYPE - 1]:
        raise RuntimeError(f"PyTorch {torch.__version__} keeps its device guards elsewhere")
    guards[1] = guards[_LAST_TYPE - 1]


_LAST_TYPE = 21


def _module() -> Any:
    return SimpleNamespace(
        is_initialized=lambda: True,
        is_available=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: 1,
        _is_in_bad_fork=lambda: False,
        _lazy_init=lambda: None,
        manual_seed_all=lambda *_: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16, torch.float32],
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda *_: None,
    )


def _register_operations() -> None:
    """What has no tensor of the device among its arguments yet: new memory, and copies into it."""
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    makers = {
        "empty.memory_format": torch.ops.aten.empty.memory_format,
        "empty_strided": torch.ops.aten.empty_strided.default,
    }
    for key in ("CUDA", "PrivateUse1"):
        for name, make in makers.items():
            library.impl(name, _maker(make), key)
        library.impl("copy_", _copy, key)


def _maker(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        kwargs |= {"device": torch.device("cpu"), "pin_memory": False}
        return Pretended(make(*args, **kwargs))

    return made


def _register_autocast() -> None:
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    for names, half in ((_IN_HALF, True), (_IN_FLOAT, False)):
        for name in names:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _casting(func, half=half), "AutocastPrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    _kept.append(rest)
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def _casting(func: Any, *, half: bool) -> Callable[..., Any]:
    def cast(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        wanted = torch.get_autocast_dtype(_NAME) if half else torch.float32
        return x if x.dtype in (wanted, torch.float64) else x.to(wanted)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST)):  # type: ignore[attr-defined]
            return func(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


def _patch_cuda() -> None:
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.init = lambda: None
    cuda.is_available = lambda: True
    cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.set_device = lambda *_: None
    cuda.get_device_name = lambda *_: "a pretended GPU"
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.get_device_properties = lambda *_: SimpleNamespace(
        name="a pretended GPU", major=9, minor=0, total_memory=_MEMORY_BYTES
    )
    cuda.is_bf16_supported = lambda *_, **__: True
    cuda.mem_get_info = lambda *_: (_MEMORY_BYTES - DEVICE.held_bytes, _MEMORY_BYTES)
    cuda.memory_allocated = lambda *_: DEVICE.held_bytes
    cuda.memory_reserved = lambda *_: DEVICE.held_bytes
    cuda.max_memory_allocated = lambda *_: DEVICE.peak_bytes
    cuda.max_memory_reserved = lambda *_: DEVICE.peak_bytes
    cuda.empty_cache = lambda: None
    cuda.synchronize = lambda *_: DEVICE.wait("synchronize")
    cuda.Stream = cuda.Event = _Waits
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.device = lambda *_: contextlib.nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *_: _Waits()
    cuda.manual_seed = cuda.manual_seed_all = lambda *_: None
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda *_: None
    cuda.is_current_stream_capturing = lambda: False
    torch._C._cuda_getDevice = lambda: 0  # type: ignore[attr-defined]
    torch.Generator = _Generator  # type: ignore[misc]
    begins = torch.autocast.__init__

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begins(self, _NAME if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = autocast  # type: ignore[method-assign]


def _patch_pinning() -> None:
    tensor: Any = Tensor
    tensor.pin_memory = lambda self, *_: (
        self if DEVICE.is_pinned(self) else DEVICE.pin(self.clone())
    )
    tensor.is_pinned = lambda self, *_: DEVICE.is_pinned(self)
    for name in ("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "tensor"):
        setattr(torch, name, _pinning(getattr(torch, name)))


def _pinning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        found = make(*args, **kwargs)
        return DEVICE.pin(found) if pin_memory else found

    return made
