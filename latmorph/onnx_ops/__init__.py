"""How every operator is written as ONNX: one function a name in aten.

To teach latmorph's ONNX an operator, add a function to one of these files. Nothing else needs to know.
"""

from __future__ import annotations

from latmorph.onnx_ops import moves, pointwise, products, spatial
from latmorph.onnx_ops.site import TABLE, Parameters, Site, Writer, import_onnx, name_of, numpy_dtype

__all__ = [
    "TABLE",
    "Parameters",
    "Site",
    "Writer",
    "import_onnx",
    "moves",
    "name_of",
    "numpy_dtype",
    "pointwise",
    "products",
    "spatial",
]
