"""What lives at the same time during steps on tensors without content, and models of such tensors.

torch's FakeTensorMode gives tensors shapes and no memory. LiveMemory counts the bytes of their storages, as torch's
MemTracker does, but without its statistics of every module, which take ten times as long and need gradients everywhere.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Shapes: O = outputs of a layer, I = its inputs.

ModuleType = TypeVar("ModuleType", bound=torch.nn.Module)
MAKING = [getattr(torch.ops.aten, name).default for name in ("zeros", "ones", "full")]
MAKING.append(torch.ops.aten.empty.memory_format)
MAX_REAL = 1 << 20  # numbers of a tensor that is made with content, as one of token ids is
BLOCK, NESTED_BLOCK = 64, 256  # numbers that share a scale, and scales that share one, in bitsandbytes' NF4


class Peak(NamedTuple):
    """The most bytes at the same time."""

    bytes: int  # of all tensors
    beside_gradients: int  # of all but the gradients of trained weights


class LiveMemory(TorchDispatchMode):
    """Inside, `peaks` has the most bytes that tensors had at the same time in each phase since the last `restart`.
    Gradients are those of the `trained` weights."""

    def __init__(self, trained: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self._gradients = 0
        self.peaks = [Peak(0, 0)]
        for weight in trained:
            weight.register_post_accumulate_grad_hook(self._add_gradient)
        self._known: dict[int, int] = {}  # id of a storage -> its bytes

    def add(self, *tensors: torch.Tensor) -> None:
        """Counts tensors that exist already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                self._known[id(storage)] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage)).atexit = False
        peak = self.peaks[-1]
        self.peaks[-1] = Peak(max(peak.bytes, self.bytes), max(peak.beside_gradients, self.bytes - self._gradients))

    def restart(self) -> None:
        """Forgets the peaks, and begins the first phase. No weight has a gradient then."""
        self._gradients = 0
        self.peaks = [Peak(self.bytes, self.bytes)]

    def next_phase(self, *_: object) -> None:
        """Begins another phase; may be a hook of autograd."""
        self.peaks.append(Peak(self.bytes, self.bytes - self._gradients))

    def set_apart_backward_of(self, module: torch.nn.Module) -> None:
        """From now on, the backward pass of each call of the module is a phase between two others."""

        def bracket(module: object, inputs: object, output: torch.Tensor) -> None:
            if output.grad_fn is not None:
                output.grad_fn.register_prehook(self.next_phase)
                output.grad_fn.register_hook(self.next_phase)

        module.register_forward_hook(bracket)

    def _add_gradient(self, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        self._gradients += weight.grad.untyped_storage().nbytes()

    def _freed(self, number: int) -> None:
        self.bytes -= self._known.pop(number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        return result


class Content(TorchDispatchMode):
    """Answers what tensors without content can't: the value of a scalar, and how many elements a mask keeps. And large
    tensors of numbers that are made inside, as the sum of the head's gradients, have no content either."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()
        self.fake_mode = fake_mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MAKING and math.prod(args[0]) > MAX_REAL and _makes_floats(kwargs or {}):
            with self.fake_mode:
                return func(*args, **kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], [part for index in args[1] for part in _as_numbers(index)])
        return func(*args, **kwargs or {})


def _makes_floats(kwargs: dict[str, Any]) -> bool:
    return (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point


def _as_numbers(index: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """A mask with content as the numbers of the elements that it keeps; any other index as it is."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    return index.nonzero(as_tuple=True)


def without_content(make: Callable[[], ModuleType]) -> ModuleType:
    """The module that `make` builds, with fake tensors on the CPU as weights and buffers.

    It is built on the meta device first, since PEFT moves the weights of its adapters, which fake ones refuse.
    """
    with torch.device("meta"):
        model = make()
    made: dict[int, torch.Tensor] = {}  # tied weights stay tied
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                setattr(module, name, made.setdefault(id(tensor), _fake(tensor)))
    return model


def fake_mode_of(model: torch.nn.Module) -> FakeTensorMode:
    """The mode in which `without_content` made the weights of the model."""
    weight = next(model.parameters())
    assert isinstance(weight, FakeTensor)
    return weight.fake_mode


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty


# -- four bits ------------------------------------------------------------------------------------------------------


class FourBitLinear(torch.nn.Linear):
    """A linear layer with the tensors of bitsandbytes' Linear4bit: packed weights and scales. A product restores its
    weights in `dtype` for as long as it takes, and again in the backward pass."""

    def __init__(self, layer: torch.nn.Linear, *, dtype: torch.dtype, nested: bool) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.shape_OI, self.dtype = (layer.out_features, layer.in_features), dtype
        size = layer.weight.numel()
        packed = torch.empty(math.ceil(size / 2), 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias
        scales = math.ceil(size / BLOCK)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8 if nested else torch.float32))
        self.register_buffer("scales_of_scales", torch.empty(math.ceil(scales / NESTED_BLOCK) if nested else 0))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result = _FourBitProduct.apply(input.to(self.dtype), self.weight, self.shape_OI, self.dtype)
        result = result if self.bias is None else result + self.bias.to(self.dtype)
        return result.to(input.dtype)


class _FourBitProduct(torch.autograd.Function):
    """The product of bitsandbytes' MatMul4Bit, which keeps no input, as its weights are frozen."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, packed: torch.Tensor, shape_OI: Any, dtype: torch.dtype) -> torch.Tensor:
        ctx.restore = lambda: packed.new_empty(shape_OI, dtype=dtype)
        return torch.nn.functional.linear(input, ctx.restore())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight_OI = ctx.restore()
        return torch.matmul(grads[0], weight_OI.to(grads[0].dtype)), None, None, None


def quantise(model: torch.nn.Module, *, dtype: torch.dtype, nested: bool) -> None:
    """Replaces the linear layers of a model by ones of four bits, in place, except its head, as transformers does."""
    heads = {getattr(model, name, None) for name in ("lm_head", "score")}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and layer not in heads:
                setattr(parent, name, FourBitLinear(layer, dtype=dtype, nested=nested))
