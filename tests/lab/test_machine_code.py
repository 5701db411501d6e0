"""The gate lets good kernels pass and names what is wrong with each bad one, without a GPU."""

import re

import bad_kernels as kernels
import pytest
from bad_kernels import build

from kernels import compile as compile_module
from kernels.compile import SharedCompiler, ToolkitError, compile_ptx
from kernels.launch import factories
from minidl.errors import DeviceError
from minidl.lab import machine_code
from minidl.lab.machine_code import classify, disassembler, examine, examine_all


@pytest.fixture(scope="module", autouse=True)
def toolkit() -> None:
    try:
        disassembler()
        examine([build(kernels.good)], "sm_80")
    except ToolkitError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sm_80", "sm_90"])
def architecture(request) -> str:
    return request.param


def problem(kernel, architecture: str) -> str:
    """The one problem of the kernel."""
    (code,) = examine([kernel], architecture)
    (found,) = code.problems
    return found


def test_a_good_kernel(architecture) -> None:
    (code,) = examine([build(kernels.good)], architecture)
    assert code.problems == ()
    assert (code.kernel, code.architecture) == ("good_kernel()", architecture)
    assert 8 <= code.registers <= 32
    assert (code.local, code.static_shared, code.dynamic_shared) == (0, 4 * 32, 0)
    expected = {"global load 32": 1, "shared store 32": 1, "shared load 32": 1, "global store 32": 1, "barrier": 1}
    assert {name: code.instructions[name] for name in expected} == expected
    assert code.size == sum(code.instructions.values()) > 15


def test_wide_loads(architecture) -> None:
    promised = ("LDG.E.128", "STG.E.128")
    (code,) = examine([build(kernels.wide, instructions=promised)], architecture)
    assert code.problems == ()
    assert (code.instructions["global load 128"], code.instructions["global store 128"]) == (1, 1)
    (code,) = examine([build(kernels.narrow, instructions=promised)], architecture)
    assert code.problems == (
        "no LDG.E.128, which is promised, but LDG.E",
        "no STG.E.128, which is promised, but STG.E",
    )
    assert problem(build(kernels.narrow, instructions=("HMMA",)), architecture) == "no HMMA, which is promised"


@pytest.mark.parametrize(
    ("function", "instruction"),
    [
        (kernels.float64_literal, "DMUL"),
        (kernels.float64_comparison, "DSETP"),
        (kernels.float64_division, "MUFU.RCP64H"),
    ],
)
def test_float64(function, instruction, architecture) -> None:
    found = problem(build(function), architecture)
    assert found.startswith("float64 instructions: ")
    assert instruction in found


def test_local_memory(architecture) -> None:
    found = problem(build(kernels.indexed_local, registers=255), architecture)
    assert found.startswith("local memory: 256 bytes a thread, ")


def test_spilled_registers(architecture) -> None:
    found = problem(build(kernels.spilling, registers=255), architecture)
    assert found.startswith("local memory: ")
    assert "0 loads and stores" not in found


def test_too_many_registers(architecture) -> None:
    kernel = build(kernels.hungry, registers=64)
    assert problem(kernel, architecture).endswith(" registers, promised are at most 64")
    (code,) = examine([build(kernels.hungry, registers=255)], architecture)
    assert code.registers > 128
    assert code.problems == ()
    found = problem(build(kernels.hungry, registers=255, block=1024), architecture)
    assert found.endswith("for each of 1024 threads: no block fits on a multiprocessor")


def test_shared_memory(architecture) -> None:
    most = {"sm_80": 163, "sm_90": 227}[architecture] << 10
    assert not examine([build(kernels.dynamic_shared, shared_bytes=most)], architecture)[0].problems
    assert "bytes of shared memory, a block may have" in problem(
        build(kernels.dynamic_shared, shared_bytes=most + 4), architecture
    )
    (code,) = examine([build(kernels.static_shared(1000))], architecture)
    assert (code.static_shared, code.problems) == (4000, ())
    found = problem(build(kernels.static_shared(16 << 10)), architecture)
    if found.startswith("does not compile: "):  # by the assembler, for sm_80; for sm_90 it takes more
        assert "too much shared data" in found
    else:
        assert found == "65,536 bytes of static shared memory, at most 49,152 are allowed"


def test_dynamic_shared_memory_is_declared(architecture) -> None:
    (code,) = examine([build(kernels.dynamic_shared, shared_bytes=128)], architecture)
    assert (code.problems, code.dynamic_shared) == ((), 128)
    found = problem(build(kernels.dynamic_shared), architecture)
    assert found == "it uses dynamic shared memory, its launch declares 0 bytes"
    found = problem(build(kernels.good, shared_bytes=128), architecture)
    assert found == "it uses no dynamic shared memory, its launch declares 128 bytes"


def test_one_that_does_not_compile_spoils_no_other() -> None:
    """Neither what Numba refuses nor what the assembler refuses."""
    bad, unlinkable = build(kernels.ill_typed), build(kernels.static_shared(16 << 10))
    codes = examine([build(kernels.good), bad, build(kernels.wide), unlinkable], "sm_80")
    assert [code.kernel for code in codes] == [
        "good_kernel()",
        "ill_typed_kernel()",
        "wide_kernel()",
        "uses_static_shared_kernel()",
    ]
    assert [bool(code.problems) for code in codes] == [False, True, False, True]
    assert codes[1].problems[0].startswith("does not compile: TypingError: ")
    assert codes[1].instructions == {}
    assert codes[3].problems[0].startswith("does not compile: RuntimeError: ")


def test_kernels_in_a_group_are_as_if_alone(architecture) -> None:
    group = [
        example for name in ("relu_forward_vector", "relu_forward_scalar") for example in factories()[name].examples()
    ]
    assert examine(group, architecture) == [examine([kernel], architecture)[0] for kernel in group]


def test_processes_give_what_one_gives(monkeypatch) -> None:
    names = ["relu_forward_vector", "relu_forward_scalar"]
    alone = examine_all(names, jobs=1)
    monkeypatch.setattr(machine_code, "GROUP", 2)
    assert examine_all(names, jobs=2) == alone
    assert [(code.kernel, code.architecture) for code in alone] == sorted(
        (repr(kernel), architecture)
        for name in names
        for kernel in factories()[name].examples()
        for architecture in ("sm_80", "sm_90")
    )


def _without_names(ptx: str) -> str:
    return re.sub(r"_cudapy_\w+|_ZN\w+", "name", ptx)


def test_architectures_share_numbas_part_of_the_work_and_get_the_same_code(monkeypatch) -> None:
    made = []
    library_of = compile_module._library_of
    monkeypatch.setattr(compile_module, "_library_of", lambda *given: made.append(given) or library_of(*given))
    shared = SharedCompiler()
    for name in ("relu_forward_vector", "norm_of_squares", "softmax_forward_rows"):
        kernel = factories()[name].examples()[0]
        for capability in ((8, 0), (9, 0)):
            assert _without_names(shared(kernel, capability)) == _without_names(compile_ptx(kernel, capability))
    assert len(made) == 3
    made.clear()
    examine_all(["norm_of_squares"])
    assert len(made) == 1


def test_a_numba_that_has_no_such_part_compiles_for_each(monkeypatch) -> None:
    kernel = factories()["relu_forward_scalar"].examples()[0]
    alone = _without_names(compile_ptx(kernel, (9, 0)))

    def missing(*_: object) -> None:
        raise ImportError("cannot import name '_compile_pyfunc_with_fixup'")

    monkeypatch.setattr(compile_module, "_library_of", missing)
    assert _without_names(SharedCompiler()(kernel, (9, 0))) == alone


def test_kernels_of_one_architecture_are_compiled_for_that_alone(monkeypatch) -> None:
    asked = []

    def note(group):
        asked.extend((architecture, {name for name, _ in some}) for architecture, some in group.items())
        return []

    monkeypatch.setattr(machine_code, "_examine_group", note)
    both = {"conv2d_forward_wgmma", "relu_forward_scalar"}
    examine_all(sorted(both), ["sm_80", "sm_90"], jobs=1)
    assert asked == [("sm_80", {"relu_forward_scalar"}), ("sm_90", both)]
    with pytest.raises(DeviceError, match="conv2d_forward_wgmma: only sm_90 has the instructions, given was sm_80"):
        examine_all(["conv2d_forward_wgmma"], ["sm_80"])


def test_unknown_names() -> None:
    with pytest.raises(DeviceError, match="no kernel 'relu_forward'; known: relu_forward_scalar, relu_forward_vector"):
        examine_all(["relu_forward"])
    with pytest.raises(DeviceError, match="'hopper' is no architecture; one is called sm_80"):
        examine_all(["relu_forward_scalar"], ["hopper"])


def test_a_missing_disassembler_is_named_before_anything_is_compiled(monkeypatch) -> None:
    import cuda.pathfinder

    monkeypatch.setattr(cuda.pathfinder, "find_nvidia_binary_utility", lambda name: None)
    monkeypatch.setattr(machine_code, "examine", lambda *_: pytest.fail("compiled"))
    disassembler.cache_clear()
    try:
        with pytest.raises(ToolkitError, match="pip install nvidia-cuda-nvdisasm"):
            examine_all(["relu_forward_scalar"])
    finally:
        disassembler.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LDG.E.128.CONSTANT", "global load 128"),
        ("LDG.E.64", "global load 64"),
        ("LDG.E.U8", "global load 32"),
        ("LDGSTS.E.BYPASS.128", "async copy"),
        ("STS.128", "shared store 128"),
        ("LDSM.16.M88.4", "matrix"),
        ("HMMA.1688.F32.TF32", "matrix"),
        ("LDL.LU", "local"),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "atomic"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("FFMA", "float"),
        ("F2I.TRUNC.NTZ", "convert"),
        ("IMAD.WIDE.U32", "integer and other"),
    ],
)
def test_classes(name, expected) -> None:
    assert classify(name) == expected


@pytest.mark.parametrize(
    ("name", "is_float64"),
    [
        ("DFMA", True),
        ("DSETP.GT.AND", True),
        ("F2F.F64.F32", True),
        ("MUFU.RSQ64H", True),
        ("DMMA.884", True),
        ("DEPBAR.LE", False),
        ("LDG.E.64", False),
        ("HMMA.16816.F32", False),
        ("IMAD.WIDE", False),
        ("I2F.U64", False),
    ],
)
def test_float64_names(name, is_float64) -> None:
    assert bool(machine_code.FLOAT64.match(name)) == is_float64
