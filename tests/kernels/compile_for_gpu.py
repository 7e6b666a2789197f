"""Compile the Triton kernels for a GPU that need not be there; prints one JSON line per kernel and shape.

Run as ``python -m tests.kernels.compile_for_gpu 90:bf16:128 80:fp32:64`` without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsemm_eval.kernels import ragged_triton

POINTERS = {"items": "*i32", "ranges": "*i32", "length": "*i64", "pool": "*i64", "segments": "*i64"}
NUMBERS = {"scale": "fp32", "count_of_segments": "i32"}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def compile_kernel(kernel, capability, dtype, constants):
    """Machine code and facts of one kernel; pointers are taken to be aligned, as torch's are."""
    signature = {name: "constexpr" if name in constants else f"*{dtype}" for name in kernel.arg_names}
    signature |= {name: kind for name, kind in (POINTERS | NUMBERS).items() if name in signature}
    signature |= {name: "*fp32" for name in signature if name.startswith("partial")}
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[n]: [["tt.divisibility", 16]] for n, kind in signature.items() if kind.startswith("*")},
    )
    options = {"num_warps": ragged_triton.WARPS, "num_stages": ragged_triton.STAGES}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(*targets):
    """Compile every kernel for each ``compute capability:dtype:dim``."""
    for target in targets:
        capability, dtype, dim = target.split(":")
        padded = triton.next_power_of_2(int(dim))
        tile = ragged_triton._tile(padded, BYTES[dtype])
        common = {"G": 7, "D": int(dim)}
        span = {"ROWS": ragged_triton.ROWS, "DIM": padded, "TILE": tile, "WIDEN": False}
        merge = {"DIM": ragged_triton.MERGE_DIM, "SPANS": ragged_triton.MERGE_SPANS}
        for kernel, constants in (
            (ragged_triton._attend_span, common | span),
            (ragged_triton._merge_spans, common | merge),
        ):
            binary = compile_kernel(kernel, int(capability), dtype, constants)
            facts = {
                "kernel": kernel.__name__,
                "target": target,
                "shared": binary.metadata.shared,
                "matrix_units": "mma.sync" in binary.asm["ptx"],
                # 16 bytes at once, which needs the pool's alignment to be known
                "asynchronous": "cp.async.cg" in binary.asm["ptx"],
                "code": len(binary.asm["cubin"]),
            }
            print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
