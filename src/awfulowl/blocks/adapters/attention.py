"""`nn.MultiheadAttention`: its four projections are scattered, the attention itself stays at the owner.

The projections of one tensor (query is key is value, or key is value) get the very same object, so the owner can
send it once.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.linear import ScatteredLinear
from awfulowl.blocks.adapters.stand_in import Scattering, StandIn
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import InputError

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class ScatteredAttention(StandIn):
    """Multi-head attention whose projections are computed elsewhere.

    Inside, N is the batch, L and S are the lengths of queries and keys, E is the embedding, H are heads.
    """

    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    out_proj: nn.Module

    @classmethod
    def of(cls, module: nn.Module, scattering: Scattering) -> Self:
        """Return the stand-in of `module`, with another inside for the output projection."""
        own = tuple(name for name in scattering.parameters if "." not in name)
        stand_in = super().of(module, replace(scattering, parameters=own))
        multiply = {"": scattering.multiply["out_proj"]}
        inner = replace(scattering, parameters=("weight",), multiply=multiply, inside="out_proj")
        stand_in.out_proj = ScatteredLinear.of(module.get_submodule("out_proj"), inner)
        return stand_in

    def answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `nn.MultiheadAttention` does without its fast path; the arguments are the same."""
        self._check_dense(query, key, value)
        self._check_shapes(query, key, value)
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, (len(q), q.shape[1], k.shape[1]), query.dtype)
        if is_causal and attn_mask is None:
            raise self._misuse("is_causal is a hint: it needs attn_mask beside it")
        # As in PyTorch, the hint stands for the mask only where nothing else needs one.
        hint = is_causal and key_padding_mask is None and not need_weights
        k, v, mask = self._extended(k, v, None if hint else mask)
        y, weights = self._attended((q, k, v), mask, hint, need_weights)
        if batched and not self.batch_first:
            y = y.transpose(0, 1)
        # Called as PyTorch uses it: hooks of the output projection do not run.
        y = self.out_proj.forward(y if batched else y[0])
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        return y, weights

    def _misuse(self, what: str) -> InputError:
        return InputError(f"layer '{self._scattering.layer}': {what}")

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        shapes = [tuple(x.shape) for x in (query, key, value)]
        batch = 0 if self.batch_first else 1
        alike = key.shape[:-1] == value.shape[:-1] and key.dim() == query.dim()
        if query.dim() not in (2, 3) or not alike or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
            raise self._misuse(f"query, key and value of shapes {shapes} do not go together")

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries (N, L, E), keys and values (N, S, E)."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        sizes = (self.embed_dim, self.kdim, self.vdim)
        sent: dict[int, Tensor] = {}
        projected = []
        for name, x, size, bias in zip(_PROJECTIONS, (query, key, value), sizes, biases, strict=True):
            once = sent.setdefault(id(x), self._to_send(x, size))
            y = self._finish(self._product(name, once), x, bias)
            y = y[None] if y.dim() == 2 else y
            projected.append(y if self.batch_first or x.dim() == 2 else y.transpose(0, 1))
        return projected

    def _mask(
        self,
        attention: Tensor | None,
        padding: Tensor | None,
        sizes: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Return what is added to the scores, of a shape that broadcasts to (N, H, L, S)."""
        batch, queries, keys = sizes
        masks = []
        if attention is not None:
            whole = (batch * self.num_heads, queries, keys)
            if tuple(attention.shape) not in (whole, whole[1:]):
                raise self._misuse(f"attn_mask of shape {tuple(attention.shape)} is neither {whole[1:]} nor {whole}")
            masks.append(attention.reshape(-1, self.num_heads if attention.dim() == 3 else 1, queries, keys))
        if padding is not None:
            if padding.numel() != batch * keys or padding.shape[-1] != keys:
                raise self._misuse(f"key_padding_mask of shape {tuple(padding.shape)} is not {(batch, keys)}")
            masks.append(padding.reshape(batch, 1, 1, keys))
        if any(mask.dtype != torch.bool and not mask.is_floating_point() for mask in masks):
            raise self._misuse("masks are of bool or floating point type")
        added = [
            torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        return added[0] + added[1] if len(added) == 2 else next(iter(added), None)

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the learned key and value and the zero ones, which no mask covers."""
        before = k.shape[1]
        one = (len(k), 1, self.embed_dim)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(one)], dim=1)
            v = torch.cat([v, self.bias_v.expand(one)], dim=1)
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(one)], dim=1) for x in (k, v))
        return k, v, None if mask is None else functional.pad(mask, (0, k.shape[1] - before))

    def _attended(
        self, sequences: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return what was attended to, (N, L, E), and if wanted the weights, (N, H, L, S)."""
        heads = (self.num_heads, self.embed_dim // self.num_heads)
        q, k, v = (x.reshape(*x.shape[:2], *heads).transpose(1, 2) for x in sequences)
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
            return y.transpose(1, 2).flatten(2), None
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.mT
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = functional.dropout(weights, dropout)
        return (weights @ v).transpose(1, 2).flatten(2), weights


class AttentionAdapter(Adapter):
    """`nn.MultiheadAttention` and subclasses that compute the same."""

    kind: ClassVar[str] = "attention"
    stand_in: ClassVar[type[StandIn]] = ScatteredAttention

    def original(self, module: nn.Module) -> type[nn.Module] | None:
        """Return `nn.MultiheadAttention` for attention."""
        return nn.MultiheadAttention if isinstance(module, nn.MultiheadAttention) else None

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the input projections, in one or apart, and of the output projection."""
        packed: Any = getattr(module, "_qkv_same_embed_dim", True)
        apart = tuple(f"{name}_weight" for name in _PROJECTIONS)
        return (*(("in_proj_weight",) if packed else apart), "out_proj.weight")

    def products(self, module: nn.Module, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return the projections of queries, keys and values, and the output projection."""
        del unfold
        *inputs, output = (module.get_parameter(name).detach() for name in self.parameters(module))
        weights = inputs[0].chunk(3) if len(inputs) == 1 else inputs
        names = (*_PROJECTIONS, "out_proj")
        return tuple(Product(name, (weight,), Dense()) for name, weight in zip(names, (*weights, output), strict=True))
