"""PyTorch as the peer: the same computations, on the same device, by the same number of threads.

    eager           NCHW, as PyTorch starts out
    channels-last   NHWC in memory, as PyTorch recommends for convolutions
    compile         torch.compile, channels last where there are images
    graph           a CUDA graph of the whole step, NCHW (training steps on a GPU)
    graph-channels-last   the same, channels last

cuDNN may try its algorithms and keep the fastest (torch.backends.cudnn.benchmark). Products are in TF32 where minidl's
are, and in float32 where minidl's are. Where minidl stores activations in 16 bits, training steps are under autocast to
the same type, with float16 by PyTorch's GradScaler and fused optimizer, which lets the host wait for nothing.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minidl.errors import ConfigError, DeviceError
from minidl.lab.bench.operations.problem import Call, Input, Problem, Role

VARIANTS = ("eager", "channels-last", "compile")
GRAPHS = ("graph", "graph-channels-last")
NAMES = ("torch", *(f"torch-{variant}" for variant in (*VARIANTS, *GRAPHS)))
REMEDY = 'install PyTorch (`python -m pip install -e ".[oracle]"`), or leave --peer out'


class TorchPeer:
    """PyTorch on one device.

    Args:
        device: "cpu" or "cuda".
        threads: The CPU's.
        precision: minidl's.
        variants: Those that are timed.

    Raises:
        DeviceError: PyTorch is not here, or cannot use that device.
    """

    def __init__(
        self, device: str, threads: int, precision: str = "fp32", variants: tuple[str, ...] = (*VARIANTS, *GRAPHS)
    ) -> None:
        try:
            self.torch: Any = importlib.import_module("torch")
        except ImportError as error:
            why = "PyTorch is not installed" if isinstance(error, ModuleNotFoundError) else f"{error}"
            raise DeviceError(f"--peer torch: {why}; {REMEDY}") from None
        if device == "cuda" and not self.torch.cuda.is_available():
            raise DeviceError(
                f"--peer torch: this PyTorch ({self.torch.__version__}) finds no GPU; install one that is built for "
                "this machine's CUDA, or leave --peer out"
            )
        self.device, self.threads, self.precision = device, threads, precision
        self.chosen = variants

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, PyTorch has the threads and the precision; afterwards those that it had."""
        torch = self.torch
        threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
        before = cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.set_num_threads(self.threads)
        cudnn.benchmark = True
        cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision != "fp32"
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    def variants(self, problem: Problem) -> dict[str, str]:
        """Of an operation: each variant that was chosen, and why it is left out ("" where it is not)."""
        reasons = {
            "eager": "",
            "channels-last": "" if problem.has_layout else "there is no layout to choose",
            "compile": self.why_not_compiled if problem.gains_by_compiling else "it calls what eager calls",
        }
        return {name: why for name, why in reasons.items() if name in self.chosen}

    def step_variants(self) -> dict[str, str]:
        """Of a training step, likewise."""
        graphs = "" if self.device == "cuda" else "a CPU has no CUDA graphs"
        reasons = {"eager": "", "channels-last": "", "compile": self.why_not_compiled, **dict.fromkeys(GRAPHS, graphs)}
        return {name: why for name, why in reasons.items() if name in self.chosen}

    @functools.cached_property
    def why_not_compiled(self) -> str:
        """Why torch.compile does not work here; "" where it does."""
        if "compile" not in self.chosen:
            return "it was not asked for"
        torch = self.torch
        try:
            x = torch.ones(64, device=self.device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own parts
                found = self.compiled(lambda x: (x + 1).relu())(x)
            return "" if bool((found == 2).all()) else "torch.compile computes something else here"
        except Exception as error:  # whatever its compiler is missing
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"torch.compile does not work here: {lines[0][:160]}"

    def compiled(self, function: Any) -> Any:
        """By torch.compile, for these shapes alone; what was compiled before is forgotten."""
        self.torch.compiler.reset()
        return self.torch.compile(function, dynamic=False, fullgraph=True)

    def autocast(self, graph: bool = False) -> contextlib.AbstractContextManager[Any]:
        """Around a forward pass in 16 bits; nothing in other precisions. `graph`: of a step that is captured."""
        name = {"bf16": "bfloat16", "fp16": "float16"}.get(self.precision)
        if name is None:
            return contextlib.nullcontext()
        cast: contextlib.AbstractContextManager[Any] = self.torch.autocast(
            self.device, dtype=getattr(self.torch, name), cache_enabled=not graph
        )
        return cast

    def call(self, problem: Problem, variant: str) -> Call:
        """An operation by a variant."""
        last = variant != "eager"
        tensors = {name: self.tensor(given, last) for name, given in problem.inputs.items()}
        call = problem.theirs(self.torch, tensors, self.compiled if variant == "compile" else lambda function: function)
        return call._replace(run=_quietly(call.run), prepare=_quietly(call.prepare)) if variant == "compile" else call

    def tensor(self, given: Input, channels_last: bool) -> Any:
        """The input on the device, by PyTorch's order of axes."""
        value = given.value
        if given.role == "activation" and value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
        elif given.role == "weight":
            value = value.transpose(3, 2, 0, 1)
        tensor = self.torch.from_numpy(np.array(value, order="C")).to(self.device)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=self.torch.channels_last)
        return tensor

    def host(self, tensor: Any, role: Role) -> np.ndarray:
        """An answer in minidl's layout."""
        value: np.ndarray = tensor.detach().cpu().numpy()
        if role == "activation" and value.ndim == 4:
            return np.array(value.transpose(0, 2, 3, 1), order="C")
        return np.array(value.transpose(2, 3, 1, 0) if role == "weight" else value, order="C")

    def versions(self) -> dict[str, Any]:
        """Of PyTorch and what it brings."""
        torch = self.torch
        found: dict[str, Any] = {"torch": torch.__version__}
        if self.device == "cuda":
            found |= {"torch-cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        return found


def _quietly(function: Any) -> Any:
    """The first call compiles, and warns of its own parts."""
    state = {"first": True}

    @functools.wraps(function)
    def call() -> Any:
        if not state["first"]:
            return function()
        state["first"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()

    return call


def chosen_variants(names: tuple[str, ...]) -> tuple[str, ...]:
    """What --peer names: torch for all variants. Raises ConfigError."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--peer {name}: there is no such peer; there are {', '.join(NAMES)}")
    if "torch" in names:
        return (*VARIANTS, *GRAPHS)
    return tuple(variant for variant in (*VARIANTS, *GRAPHS) if f"torch-{variant}" in names)


def apart(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float) -> str:
    """Where two sides' answers are further apart than `tolerance` times the largest value of theirs; "" if nowhere."""
    for name, their in theirs.items():
        our = ours[name]
        if our.shape != their.shape:
            return f"{name} has shape {our.shape} here and {their.shape} in PyTorch"
        if not our.size:
            continue
        difference = np.abs(our.astype(np.float64) - their)
        worst, largest = float(difference.max()), float(np.abs(their).max())
        if not worst <= tolerance * largest:  # so that NaN is too far
            return f"{name} is up to {worst:.3g} apart, and at most {largest:.3g} large"
    return ""
