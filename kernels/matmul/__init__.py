"""The matrix product, and what convolution and linear layers take of it.

tiled.py                    the definition, plain and tiled kernels, and which technique a product takes
skinny.py, skinny_launch.py with one side of at most 16
tiles.py                    the skeleton through shared memory, in float32
tensor_*.py                 the skeleton on tensor cores by mma.sync: tiles, copies, fragments, loop, epilogue
wgmma_*.py                  the skeleton on tensor cores by wgmma
"""

from kernels.matmul.tiled import matmul, matmul_plain, matmul_reference, matmul_tiled, product

__all__ = ["matmul", "matmul_plain", "matmul_reference", "matmul_tiled", "product"]
