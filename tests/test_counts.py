"""Costs of the engine, counted instead of timed: operators, bytes saved for the backward, waits for a device."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import comrope
from comrope import _exponential, _generator_gradient, _linalg
from tests.helpers import DECOMPOSED, LEARNED, ROTARY, SPECTRAL, build, draw

EXPONENTIALS = ("matrix_exp", "exp", "complex", "polar")
CUSTOM_OPS = (
    _linalg._basis_op,
    _generator_gradient.generator_gradient_op,
    _exponential._exp_skew_op,
    _exponential._exp_skew_derivative_op,
)
CUSTOM_OP_BODIES = {op._qualname: op._init_fn for op in CUSTOM_OPS}
# Operators for which the host waits: for a value, for the size of a result, or for the status of a linear solver.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}
WAITS |= {"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_inv_ex", "linalg_cholesky_ex"}


class _Operators(TorchDispatchMode):
    """Records every operator that runs, and the number of elements of its largest input or output."""

    def __init__(self):
        super().__init__()
        self.ran: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.ran.append((func.overloadpacket.__name__, max((t.numel() for t in tensors), default=0)))
        return out

    def names(self) -> list[str]:
        return [name for name, _ in self.ran]

    def heavy(self, num_elements: int) -> list[str]:
        """Returns the operators on tensors of at least `num_elements` elements, without views, which touch none."""
        views = (
            "view",
            "unsafe_view",
            "transpose",
            "permute",
            "slice",
            "expand",
            "detach",
            "alias",
            "as_strided",
            "split",
            "unflatten",
            "mT",
        )
        views = (
            *views,
            "view_as_complex",
            "view_as_real",
            "unsqueeze",
            "select",
            "empty",
            "new_empty",
            "empty_like",
            "imag",
            "conj",
        )
        return [name.strip("_") for name, size in self.ran if size >= num_elements and name.strip("_") not in views]


class _OperatorsWithin(_Operators):
    """Like `_Operators`, but records the operators inside comrope's custom operators instead of these."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "comrope":
            with self:
                return CUSTOM_OP_BODIES[func.name()](*args)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _step(name, *, batch=2, tokens=40, in_basis=False, **settings) -> _Operators:
    """Returns the operators of one forward and backward, after a warm-up."""
    pe = build(
        name, dtype=torch.float32, head_dim=32, **{"block_size": 8, "std": 1.0} | settings if name != "rope" else {}
    )
    q, k, grad = (draw(batch, 2, tokens, 32, seed=i, dtype=torch.float32) for i in range(3))
    x = draw(tokens, 2, seed=9)
    for count in (False, True):
        q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
        operators = _OperatorsWithin()
        with operators:
            rotated = pe.rotation(x).rotate(q, k, in_basis=in_basis)
            torch.autograd.backward(rotated, (grad, grad))
        if count:
            return operators
    raise AssertionError


@pytest.mark.parametrize("name", SPECTRAL)
def test_no_exponential_is_taken(name):
    step = _step(name, batch=6, tokens=200)
    assert "linalg_matrix_exp" not in step.names()
    assert not [op for op in step.heavy(6 * 200) if op in EXPONENTIALS or "exp" in op.split("_")]


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_number_of_operators_depends_on_no_size(name):
    settings = {} if name == "rope" else {"num_axes": 2}
    small = _step(name, batch=2, tokens=5, **settings)
    large = _step(name, batch=7, tokens=90, **settings)
    assert len(small.ran) == len(large.ran)


@pytest.mark.parametrize(
    ("name", "in_basis", "most"),
    [
        # Rotate queries and keys, and rotate their gradients back: one pass over the tokens each.
        ("rope", False, 4),
        # Also the gradient in the phases: conjugate, multiply, sum.
        ("rope-mixed", False, 10),
        # Also rotate z back to u, and sum two kinds of outer products, for two pairs of blocks each.
        ("comrope-mt", True, 10 + 2 + 8),
        # Also multiply by the basis, in forward and backward.
        ("comrope-mt", False, 10 + 2 + 8 + 4),
        # Also the weight of each token: multiply, absolute value, sum.
        ("comrope-ld", True, 10 + 2 + 8 + 6),
        ("comrope-ap", True, 10 + 2 + 8 + 6),
        ("comrope-ld", False, 10 + 2 + 8 + 4 + 6),
    ],
)
def test_number_of_passes_over_the_tokens(name, in_basis, most):
    batch, tokens = 6, 200
    heavy = _step(name, batch=batch, tokens=tokens, in_basis=in_basis).heavy(batch * 2 * tokens * 16)
    assert len(heavy) <= most, heavy


@pytest.mark.parametrize("init", ["normal", "identity"])
def test_sums_for_closed_gaps_are_computed_only_if_there_are_closed_gaps(init):
    pe = build("comrope-ld", dtype=torch.float32, block_size=8, init=init)
    q, k, grad = (draw(2, 2, 40, 16, seed=i, dtype=torch.float32).requires_grad_() for i in range(3))
    rotated = pe.rotation(draw(40, 2)).rotate(q, k, in_basis=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.backward(rotated, (grad, grad))
    over_tokens = [
        e for e in profile.events() if e.name == "aten::bmm" and any({16, 40} <= set(shape) for shape in e.input_shapes)
    ]
    assert (
        len(over_tokens) == {"normal": 4, "identity": 12}[init]
    )  # A and K, and for closed gaps A₁, K₁, A₂ and K₂, of queries and of keys


@pytest.mark.parametrize("name", SPECTRAL)
def test_of_tensors_as_large_as_the_tokens_only_the_result_is_saved(name):
    pe = build(name, dtype=torch.float32, **({} if name == "rope" else {"block_size": 8}))
    batch, tokens = 16, 40
    q, k = (draw(batch, 2, tokens, 16, seed=i, dtype=torch.float32).requires_grad_() for i in range(2))
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rotated = pe(q, k, draw(tokens, 2, seed=9))
    results = {t.untyped_storage().data_ptr() for t in rotated}
    assert results <= set(kept) or name == "rope"  # the backward of rope needs the table only
    rest = sum(size for pointer, size in kept.items() if pointer not in results)
    table = tokens * 2 * 16 * 4  # float32 cosines and sines of all planes
    angles = sum(p.numel() for p in pe.parameters())
    assert rest <= 12 * table + 8 * 20 * angles, rest
    assert rest < q.numel() * 4  # less than a copy of the queries, and far less than a matrix per token


@pytest.mark.parametrize("name", ROTARY)
def test_an_accelerator_is_never_waited_for(name):
    """Runs on tensors without values, where reading one on the host fails: the forward as on a GPU, and a backward."""
    settings = {"init": "rope", "block_size": 2} if name in SPECTRAL and name in LEARNED else {}
    for fake, device in ((FakeTensorMode(), "cuda"), (nullcontext(), "meta")):
        with fake, torch.device(device):
            pe = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2, **settings)
            q, k = (torch.randn(3, 2, 9, 16).requires_grad_() for _ in range(2))
            rotated = pe(q, k, torch.rand(9, 2))
            if device == "meta":
                torch.autograd.backward(rotated, (torch.randn_like(q), torch.randn_like(k)))
            assert rotated[0].device.type == device
            with pytest.raises((RuntimeError, NotImplementedError), match=r"_local_scalar_dense|meta tensors"):
                rotated[0].sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("positions", [(9, 2), (3, 9, 2)])
@pytest.mark.parametrize("block_size", [2, 4, 16])
@pytest.mark.parametrize("name", ROTARY)
def test_no_operator_of_a_step_on_an_accelerator_waits(name, block_size, positions):
    """Forward and backward on a device without values, which takes the code path of accelerators."""
    settings = {"init": "rope"} if name == "comrope-mt" else {}
    with torch.device("meta"):
        pe = comrope.encoding(name, num_heads=2, head_dim=32, num_axes=2, block_size=block_size, **settings)
        q, k, x = torch.randn(3, 4, 9, 32), torch.randn(3, 2, 9, 32), torch.rand(positions)
    operators = _OperatorsWithin()
    with operators:
        rotated = pe(q.requires_grad_(), k.requires_grad_(), x)
        torch.autograd.backward(rotated, [torch.randn_like(t) for t in rotated])
    assert WAITS.isdisjoint(operators.names())
    assert name not in DECOMPOSED or block_size == 2 or {"gather", "sort"} <= set(operators.names())


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "liere"])
def test_no_operator_of_an_attached_model_waits(name):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    model = vision_transformer.VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    comrope.attach(model, name, **({"block_size": 8} if name.startswith("comrope") else {}))
    model.to("meta").train()
    operators = _OperatorsWithin()
    with operators:
        model(torch.randn(2, 3, 16, 16, device="meta")).sum().backward()
    assert WAITS.isdisjoint(operators.names())


@pytest.mark.parametrize("name", ROTARY)
def test_no_constant_is_copied_to_the_device(name):
    """Making a tensor of Python numbers copies them, and the host waits. Devices without values do not show that."""
    pe = build(name, block_size=8)
    operators = _OperatorsWithin()
    with operators:
        rotated = pe(*(draw(2, 2, 9, 16, seed=i).requires_grad_() for i in range(2)), draw(9, 2))
        torch.autograd.backward(rotated, [torch.ones_like(t) for t in rotated])
    assert "lift_fresh" not in operators.names()


@pytest.mark.parametrize("name", LEARNED)
def test_deterministic_algorithms_give_the_same_bits_twice(name):
    def step():
        pe = build(name, block_size=8)
        q, k = draw(3, 2, 50, 16).requires_grad_(), draw(3, 2, 50, 16, seed=1).requires_grad_()
        q2, k2 = pe(q, k, draw(50, 2, seed=2))
        torch.autograd.backward((q2, k2), (draw(3, 2, 50, 16, seed=3), draw(3, 2, 50, 16, seed=4)))
        return [q2, k2, q.grad, k.grad, *(p.grad for p in pe.parameters())]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
