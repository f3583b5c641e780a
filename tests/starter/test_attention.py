"""Training's own attention is attention, forwards and backwards."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kinograph.starter import attention, model  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

_FLOAT_ERROR = 2e-6  # of float32 sums over a few dozen keys, relative to the largest value
_BFLOAT_ERROR = 2e-2  # bfloat16 has 8 bits


def attended(function, tensors, above):  # type: ignore[no-untyped-def]
    """The result and the gradients of every tensor, where `above` comes back."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    result.backward(above)
    return [result.detach(), *(leaf.grad for leaf in leaves)]


def plain(query, key, value):  # type: ignore[no-untyped-def]
    turned = (tensor.double().transpose(1, 2) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*turned).transpose(1, 2).to(query.dtype)


@pytest.mark.parametrize("keys", [24, 7])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", _FLOAT_ERROR), ("bfloat16", _BFLOAT_ERROR)])
def test_it_is_what_pytorch_computes(dtype: str, bound: float, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With caches so small that two of the three heads are done at a time."""
    monkeypatch.setattr(attention, "_CACHE_BYTES", 2 * 24 * keys * getattr(torch, dtype).itemsize)
    make = torch.Generator().manual_seed(0)
    sizes = [(2, 24, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8), (2, 24, 3, 8)]
    *tensors, above = (torch.randn(size, generator=make).to(getattr(torch, dtype)) for size in sizes)
    for got, wanted in zip(attended(attention.attend, tensors, above), attended(plain, tensors, above), strict=True):
        assert got.dtype == wanted.dtype
        error = float((got - wanted).abs().max() / wanted.abs().max())
        print(f"{error:.1e}")
        assert error <= bound


def test_a_mask_is_refused() -> None:
    query = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="attn_mask=None"):
        attention._attend(query, query, query, attn_mask=torch.ones(4, 4))


def test_wans_transformer_trains_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = model.make_transformer(model.LAYOUTS["quarter"])
    noisy, text = (
        torch.randn(1, transformer.config.in_channels, 2, 4, 4),
        torch.randn(1, 5, transformer.config.text_dim),
    )
    calls = 0

    def counted(*tensors: object) -> object:
        nonlocal calls
        calls += 1
        return attend(*tensors)

    attend = attention.attend
    monkeypatch.setattr(attention, "attend", counted)
    with torch.no_grad():
        expected = transformer(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
        assert calls == 0
        with attention.attention(torch.device("cpu")):
            got = transformer(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
    assert calls == 2 * transformer.config.num_layers  # to itself, and to the text
    assert float((got - expected).abs().max()) <= 1e-5
