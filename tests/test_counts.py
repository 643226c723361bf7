"""What makes the engine fast, counted and not timed: operators, bytes kept for the backward, waits for a device."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import comrope
from comrope import _exponential, _generator, _linalg
from tests.helpers import LEARNED, ONE_PARAMETER, ROTARY, SPECTRAL, build, draw

EXPONENTIALS = ("matrix_exp", "exp", "complex", "polar")
OWN = (_linalg._basis_op, _generator.generator_gradient_op, _exponential._op, _exponential._derivative_op)
BODIES = {op._qualname: op._init_fn for op in OWN}
# Of these the host needs an answer: a value, how many there are, or whether LAPACK's kin has succeeded.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}
WAITS |= {"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_inv_ex", "linalg_cholesky_ex"}


class _Operators(TorchDispatchMode):
    """Records every operator that runs, and the largest number of elements among what goes in and comes out."""

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
        """Those that touch as many elements as all tokens have; views, which touch none, left out."""
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


class _Within(_Operators):
    """The same, with the operators that comrope's own consist of in their place."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "comrope":
            with self:
                return BODIES[func.name()](*args)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _step(name, *, batch=2, tokens=40, in_basis=False, **settings) -> _Operators:
    """The operators of one forward and backward, after a first one that may set things up."""
    pe = build(
        name, dtype=torch.float32, head_dim=32, **{"block_size": 8, "std": 1.0} | settings if name != "rope" else {}
    )
    q, k, grad = (draw(batch, 2, tokens, 32, seed=i, dtype=torch.float32) for i in range(3))
    x = draw(tokens, 2, seed=9)
    for count in (False, True):
        q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
        operators = _Within()
        with operators:
            turned = pe.rotation(x).turn(q, k, in_basis=in_basis)
            torch.autograd.backward(turned, (grad, grad))
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
        # Queries and keys: rotated, and rotated back; each is one pass over the tokens.
        ("rope", False, 4),
        # and the gradient of the phases: conjugate, multiply, sum.
        ("rope-mixed", False, 10),
        # and u rotated back and two Gram matrices, for two pairs of blocks each.
        ("comrope-mt", True, 10 + 2 + 8),
        # and the product with the basis, there and back.
        ("comrope-mt", False, 10 + 2 + 8 + 4),
        # and how much each token counts: multiply, take sizes, add up.
        ("comrope-ld", True, 10 + 2 + 8 + 6),
        ("comrope-ap", True, 10 + 2 + 8 + 6),
        ("comrope-ld", False, 10 + 2 + 8 + 4 + 6),
    ],
)
def test_how_often_the_tokens_are_gone_over(name, in_basis, most):
    batch, tokens = 6, 200
    heavy = _step(name, batch=batch, tokens=tokens, in_basis=in_basis).heavy(batch * 2 * tokens * 16)
    assert len(heavy) <= most, heavy


@pytest.mark.parametrize("init", ["normal", "identity"])
def test_sums_for_closed_gaps_are_made_only_where_there_are_some(init):
    pe = build("comrope-ld", dtype=torch.float32, block_size=8, init=init)
    q, k, grad = (draw(2, 2, 40, 16, seed=i, dtype=torch.float32).requires_grad_() for i in range(3))
    turned = pe.rotation(draw(40, 2)).turn(q, k, in_basis=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.backward(turned, (grad, grad))
    over_tokens = [
        e for e in profile.events() if e.name == "aten::bmm" and any({16, 40} <= set(shape) for shape in e.input_shapes)
    ]
    assert (
        len(over_tokens) == {"normal": 4, "identity": 12}[init]
    )  # A and K, then A₁, K₁, A₂, K₂ too; of queries and of keys


@pytest.mark.parametrize("name", SPECTRAL)
def test_nothing_as_large_as_the_tokens_is_kept_but_the_result(name):
    pe = build(name, dtype=torch.float32, **({} if name == "rope" else {"block_size": 8}))
    batch, tokens = 16, 40
    q, k = (draw(batch, 2, tokens, 16, seed=i, dtype=torch.float32).requires_grad_() for i in range(2))
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        turned = pe(q, k, draw(tokens, 2, seed=9))
    results = {t.untyped_storage().data_ptr() for t in turned}
    assert results <= set(kept) or name == "rope"  # whose backward needs the table alone
    rest = sum(size for pointer, size in kept.items() if pointer not in results)
    table = tokens * 2 * 16 * 4  # float32 cosines and sines of all planes
    angles = sum(p.numel() for p in pe.parameters())
    assert rest <= 12 * table + 8 * 20 * angles, rest
    assert rest < q.numel() * 4  # far below one copy of the queries, let alone a rotation a token


@pytest.mark.parametrize("name", ROTARY)
def test_an_accelerator_is_never_waited_for(name):
    """Tensors without values answer no question that the host would have to wait for: a GPU's forward, and a backward."""
    settings = {"init": "rope", "block_size": 2} if name in SPECTRAL and name in LEARNED else {}
    for fake, device in ((FakeTensorMode(), "cuda"), (nullcontext(), "meta")):
        with fake, torch.device(device):
            pe = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2, **settings)
            q, k = (torch.randn(3, 2, 9, 16).requires_grad_() for _ in range(2))
            turned = pe(q, k, torch.rand(9, 2))
            if device == "meta":
                torch.autograd.backward(turned, (torch.randn_like(q), torch.randn_like(k)))
            assert turned[0].device.type == device
            with pytest.raises((RuntimeError, NotImplementedError), match=r"_local_scalar_dense|meta tensors"):
                turned[0].sum().item()


@pytest.mark.parametrize("positions", [(9, 2), (3, 9, 2)])
@pytest.mark.parametrize("block_size", [2, 4, 16])
@pytest.mark.parametrize("name", ROTARY)
def test_no_operator_of_a_step_on_an_accelerator_waits(name, block_size, positions):
    """What runs where the host may not ask, on a device that has no values: forward and backward, whatever is in them."""
    settings = {"init": "rope"} if name == "comrope-mt" else {}
    with torch.device("meta"):
        pe = comrope.encoding(name, num_heads=2, head_dim=32, num_axes=2, block_size=block_size, **settings)
        q, k, x = torch.randn(3, 4, 9, 32), torch.randn(3, 2, 9, 32), torch.rand(positions)
    operators = _Within()
    with operators:
        turned = pe(q.requires_grad_(), k.requires_grad_(), x)
        torch.autograd.backward(turned, [torch.randn_like(t) for t in turned])
    assert WAITS.isdisjoint(operators.names())
    assert name not in ONE_PARAMETER or block_size == 2 or {"gather", "sort"} <= set(operators.names())


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "liere"])
def test_no_operator_of_a_model_that_it_is_attached_to_waits(name):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    model = vision_transformer.VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    comrope.attach(model, name, **({"block_size": 8} if name.startswith("comrope") else {}))
    model.to("meta").train()
    operators = _Within()
    with operators:
        model(torch.randn(2, 3, 16, 16, device="meta")).sum().backward()
    assert WAITS.isdisjoint(operators.names())


@pytest.mark.parametrize("name", ROTARY)
def test_no_constant_is_carried_to_the_device(name):
    """Numbers of Python's that become a tensor are copied, and the copy is waited for. A device without values hides it."""
    pe = build(name, block_size=8)
    operators = _Within()
    with operators:
        turned = pe(*(draw(2, 2, 9, 16, seed=i).requires_grad_() for i in range(2)), draw(9, 2))
        torch.autograd.backward(turned, [torch.ones_like(t) for t in turned])
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
