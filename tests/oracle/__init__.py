"""Scores and their gradients in 400-bit arithmetic, straight from the paper's equations: what the engine is held against.

Nothing here decomposes a matrix into eigenvectors, so nothing here is less accurate where frequencies coincide, vanish or
nearly do. Tensors are read exactly at the boundary, where float64, float32, bfloat16 and float16 values all are binary
fractions, and results are rounded once, to float64.
"""

from tests.oracle.arithmetic import BITS as BITS
from tests.oracle.arithmetic import Exponential as Exponential
from tests.oracle.arithmetic import context as context
from tests.oracle.arithmetic import exact as exact
from tests.oracle.arithmetic import eye as eye
from tests.oracle.arithmetic import rounded as rounded
from tests.oracle.arithmetic import zeros as zeros
from tests.oracle.scores import Oracle as Oracle
from tests.oracle.scores import angle_matrices as angle_matrices
from tests.oracle.scores import gradients as gradients
from tests.oracle.scores import inner_products as inner_products
from tests.oracle.scores import scores as scores
