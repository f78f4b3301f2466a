"""A small transformer: an encoder that sees the whole text, or a causal model of the next character.

Pre-norm layers (Xiong et al., 2020) of self-attention (Vaswani et al., 2017) and a two-layer perceptron.
Query, key and value are products of their own and not one fused: the plan finds that they share an input and
sends it once all the same, and each can be cut, placed, checked or kept apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Sizes of a `Transformer`.

    Raises:
        InputError: a size below 1, or a width that the heads do not divide.
    """

    vocabulary: int = 256
    """Different tokens; 256 are the bytes."""
    context: int = 128
    """The longest text, in tokens."""
    width: int = 384
    """Features per token."""
    depth: int = 6
    """Layers of attention and perceptron."""
    heads: int = 6
    """Heads of attention; they divide the width."""
    causal: bool = False
    """True: a token sees itself and what is before it. False: every token sees all."""

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.context, self.width, self.depth, self.heads)
        if min(sizes) < 1 or self.width % self.heads:
            raise InputError(f"every size must be at least 1, and heads must divide the width: {self}")


class Attention(nn.Module):
    """Multi-head self-attention: (batch, tokens, width) to the same shape."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, config.causal
        self.q, self.k, self.v, self.out = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token gathers from those it sees."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        gathered = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return y


class TransformerLayer(nn.Module):
    """Attention and perceptron, each normalised before and added to its input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width) for the same."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """Logits over the vocabulary at every token: (batch, tokens) to (batch, tokens, vocabulary)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.layers = nn.Sequential(*(TransformerLayer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits for int64 token numbers below the vocabulary.

        Raises:
            InputError: not two dimensions, or more tokens than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise InputError(
                f"token numbers must be (batch, tokens) with at most {self.config.context} tokens, "
                f"not {tuple(tokens.shape)}"
            )
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        logits: Tensor = self.head(self.norm(self.layers(x)))
        return logits
