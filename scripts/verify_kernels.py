"""Hold every kernel against its float64 definition, on the library's API, in one page.

    python scripts/verify_kernels.py              # on a GPU where there is one, else in the emulator
    python scripts/verify_kernels.py cpu          # the CPU's operations instead
    python scripts/verify_kernels.py emulator relu_forward conv2d_forward

`python -m minidl verify` does the same with more options. What is compared, and how far off it may be, is in
minidl/lab/operations; what the kernels are, in kernels/.
"""

import sys

from minidl.backends import choose
from minidl.lab.operations import operations
from minidl.lab.verify import plan, summaries, verify


def main() -> None:
    """Verify the operations that the arguments name, or all."""
    device, *wanted = sys.argv[1:] or ["auto"]
    backend = choose(device).backend
    if device == "auto" and backend.name == "cpu":
        backend = choose("emulator").backend
    print(f"device: {backend.describe()}")
    failed = False
    for operation in wanted or operations():
        rows = verify(backend, plan(backend, operation))
        for summary in summaries(rows):
            worst = summary.worst
            print(
                f"{operation:28} {summary.technique:14} {summary.cases:4} cases, worst error/bound {worst.ratio:.3f} "
                f"({worst.output} of {worst.case})"
            )
        for row in rows:
            if not row.passed:
                failed = True
                print(f"FAILED {row.variant}: {row}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
