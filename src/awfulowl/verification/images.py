"""Images of weights under secret vectors, and how they move when the weights are trained.

An image of weights W (outputs, inputs) is s = rᵀ W for secret r over the outputs, or p = W q for secret q over
the inputs. It is linear in W, and a step of gradient descent is linear in weights, momentum and gradient, so
images of all three move by the same numbers as the weights themselves (`arithmetic.descent`). The image of a
gradient Σ_b dy_b x_bᵀ is Σ_b (r dy_b) x_bᵀ: the owner computes it from what it sent, and has no need of the
weights.

Devices round, so their weights stray from those that the images belong to. How far is tracked beside the images, for
each column of W (row, for images from the right), in units of κ u² (`verification.rounding`):

- `energy` of the weights, Σ_i W_ij². It is known when secrets are drawn; later it is at most twice that and twice the
  energy of the change, which three images estimate without bias.
- `noise`, the variance of what sums of float32 products leave behind: with n products in each number of a gradient it
  gains (n + 3)/3 (Σ_b |dy_b|² x_bj² + |G_j|²) a step, and is then carried along by the rule of descent as the
  covariance of errors in weights and momentum. Where products are alike (constant inputs with equal gradients)
  sums err to one side, by n/4 units in the last place where they are all equal: n/(16 κ) |G_j|⁴/Σ_b |dy_b|²
  x_bj² is added, which is that where they are equal, and no more than the rest where their signs are random.
  Sums may be far larger on their way than at their end: products of one sample's positions are alike, and those of
  different samples cancel, as they have to before a batch normalisation, whose gradients add up to 0. So what each
  run r of terms adds, G_r, counts too: (n + 3)/3 (Σ_r |G_rj|² - Σ_b |dy_b|² x_bj²) where that is more than 0, and for
  products of a run that are all equal n p/(16 κ) Σ_r |G_rj|² with p terms in each, times the square of the share of
  p to which they are alike.
  Errors of different steps are taken for independent. So they are as soon as anything about a batch changes;
  the same x and dy to the last bit at dozens of steps, such as constant inputs whose gradients are saturated,
  err alike each time, and may look like a lie.
- `drag`, an amplitude: each update rounds each number once or a few times. Where nothing happens (a dead input, a
  constant momentum) such a rounding can be the same at every step, so these are added up as if they always were.

Drag is the most that errors add up to, whatever their signs. Errors w of weights and m of the momentum move by

    m <- a m + b w + δ,        w <- (1 + d) w + e m + ε,

with roundings |δ| and |ε| that are bounded by the lengths of what is rounded. Bounds of |w| and |m| by themselves would
move by the absolute values of these numbers; but with weight decay through the momentum e b < 0 draws w back, and in
absolute values it drives w away, by 1 + |e| b/(1 - a) a step. So a third bound is carried, of v = w + h m with
h = e a/(1 - a), which is where w ends when nothing happens to it: a momentum m moves it by e (a + a² + ...) m yet.
With w = v - h m, and any h' after the step,

    v <- w + h' m = (1 + d + (e + h') b) v + ((e + h') (a - b h) - (1 + d) h) m + (e + h') δ + ε.

Equalities all, so absolute values of these coefficients bound |v|, for any rules and any h, one after the other. The
first is 1 - |e| b/(1 - a), and the second d h or of the order of b. The bounds shrink where |e| b < (1 - a)²/(2 a).
|w| is at most what it is by itself, and at most |v| + |h m|, so the smaller of both is taken: the first is tight
for the first steps, the second later.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import Grid
from awfulowl.errors import ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.gradients import Laid, added, energy, image
from awfulowl.verification.rounding import MEAN_SQUARE, ONE_SIDED, UNIT_ROUNDOFF
from awfulowl.verification.steps import LEAST, Runs, Step, gained, gained_by_runs
from awfulowl.verification.sums import AnyKernel, Transposed
from awfulowl.verification.vectors import Vectors, project

LARGEST_SQUARE: Final = 3.0
"""Secrets are uniform in [-√3, √3], of variance 1: bounded, so that no chance makes one output count for all."""

_SLACK: Final = 2.0**-40
"""Of weights and momentum, relative to their length: what a device loses below the second float32."""


class Side:
    """Images of one panel's weights from one side.

    From the left, secrets are over the outputs and images over the inputs; from the right the other way round. With
    several `parts` (of the outputs, from the left) each has secrets of its own that are 0 elsewhere, and the images of
    some of the parts are sums.
    """

    def __init__(self, grid: Grid, entropy: Entropy, vectors: int, parts: Tensor, *, transposed: bool) -> None:
        """Draw secrets; `anchor` gives them images.

        Args:
            grid: of the weights.
            entropy: where the secrets come from.
            vectors: independent secret vectors, k, for each part.
            parts: (parts, outputs), or inputs from the right: 1 where a part has the output, else 0.
            transposed: whether images are from the right.
        """
        self._grid = grid
        self._vectors = vectors
        self._transposed = transposed
        self._whole: tuple[Tensor, int, Vectors] | None = None
        self.parts: Final = parts.double()
        self._parts = parts.float()
        uniform = entropy.uniform(parts.numel() * vectors).reshape(len(parts), vectors, -1)
        self.secret: Final = ((2 * uniform - 1) * LARGEST_SQUARE**0.5 * self.parts[:, None]).flatten(0, 1)

    def anchor(self, weight: Sequence[Tensor], momentum: Sequence[Tensor]) -> None:
        """Take images of weights and momentum that are known, and stray from them no more.

        Args:
            weight: tensors (outputs, inputs / groups, *size) whose sum are the weights.
            momentum: the same; none stands for 0.

        Raises:
            ModelError: they are not finite.
        """
        self.weight = self.project(weight)
        self.momentum = self.project(momentum) if momentum else torch.zeros_like(self.weight)
        self._start = self.weight
        self._base = self.size(weight[0])
        if not bool(self._base.isfinite().all() and self.weight.isfinite().all() and self.momentum.isfinite().all()):
            raise ModelError("weights to be trained are not finite; nothing multiplied with them can be checked")
        reach = self._length_squared(self.momentum).sqrt()  # what the momentum's columns are at most
        nothing = self._base.new_zeros(3, *self._base.shape)
        self._track(nothing, nothing, reach)
        self._lean = 0.0

    def state(self, weight: Tensor) -> None:
        """Take images of weights as somebody says that they are; those of the momentum stay, with what they strayed.

        Raises:
            ModelError: they are not finite.
        """
        self.weight = self._start = self.project([weight])
        self._base = self.size(weight)
        if not bool(self._base.isfinite().all() and self.weight.isfinite().all()):
            raise ModelError("weights to be trained are not finite; nothing multiplied with them can be checked")
        zero = torch.zeros_like(self._base)
        noise, drag = (torch.stack([zero, zero, one[2]]) for one in (self._noise, self._drag))
        self._track(noise, drag, self._reach)
        self._lean = 0.0

    def _track(self, noise: Tensor, drag: Tensor, reach: Tensor) -> None:
        """Keep what a step carries along beside the images, in one tensor: noise, drag, reach, and energy."""
        energy = self._base
        if self.weight is not self._start:
            energy = 2 * (self._base + self._length_squared(self.weight - self._start))
        self._tracked = torch.cat([noise, drag, reach[None], energy[None]])
        self._whole = None

    @property
    def _noise(self) -> Tensor:
        """The covariance of errors in weights, in both, and in momentum: (3, *size, parts, b)."""
        return self._tracked[:3]

    @property
    def _drag(self) -> Tensor:
        """Bounds of |w|, |v| and |m|: (3, *size, parts, b)."""
        return self._tracked[3:6]

    @property
    def _reach(self) -> Tensor:
        """How long the momentum's columns are at most: (*size, parts, b)."""
        return self._tracked[6]

    def project(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the image of the sum of some tensors of the panel's shape: (*size, k, b)."""
        return added([self._project(self.secret, tensor, (1,)) for tensor in tensors])

    def _project(self, secret: Tensor, weight: Tensor, powers: tuple[int, ...]) -> Tensor:
        """Return secretᵀ W^power, summed over the side's own dimension: (*size, k, b)."""
        groups = self._grid.groups
        if not self._transposed:
            return project(secret, weight, groups, powers)[0]
        by_group = zip(secret.chunk(groups, dim=1), weight.chunk(groups), strict=True)
        return torch.cat([project(own, part.transpose(0, 1), 1, powers)[0] for own, part in by_group], dim=-1)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything that is kept."""
        secrets, images = (self.secret, self.parts, self._parts), (self.weight, self.momentum, self._start)
        own = (*secrets, *images, self._base, self._tracked)
        made = None if self._whole is None else self._whole[2]
        return own if made is None else (*own, made.r, made.s, made.v, made.r_squared)

    def step_of(self, x: Tensor, dy: Tensor) -> Step | None:
        """Return what a batch adds to the gradient's image; None where that takes more than one loop, see `step`."""
        own, other = (x, dy) if self._transposed else (dy, x)
        found = compiled.correlate(self.secret, self._parts, own, other)
        return None if found is None else Step(*found, len(x))

    def step(self, x: Laid, dy: Laid) -> Step:
        """Return what some samples add to the gradient's image.

        Not in float32: what is lost of r dy_b would be the same in every column, and add up where inputs are alike.
        """
        grid = self._grid
        kernel: AnyKernel = grid.kernel if self._transposed else Transposed(grid.kernel)
        own, other = (x, dy) if self._transposed else (dy, x)
        total, squares = image(grid, kernel, self.secret, own, other)
        terms = dy.columns.shape[-1]
        runs = None if squares is None else Runs(self._mean(squares), terms / max(1, dy.shape[0]))
        return Step(total, energy(grid, kernel, self._parts, own, other), terms, runs)

    def joined(self, steps: Sequence[Step]) -> Step:
        """Return the sum of what the rows of one batch add, cut where one run ends."""
        whole = Step.total(steps)
        runs = Runs(added([self._length_squared(step.image) for step in steps]), whole.terms / len(steps))
        return whole._replace(runs=runs)

    def move(self, rule: Descent, step: Step) -> None:
        """Follow the weights through a step along a gradient."""
        carrying, self._lean = _carrying(rule, self._lean), _lean(rule)
        found = self._moved(rule, step, carrying)
        if found is not None:
            self.weight, self.momentum, self._tracked = found
            self._whole = None
        else:
            self._move(rule, step, carrying)
        if step.runs is not None:
            self._tracked[:3] += torch.einsum("n,...->n...", carrying[0][:, 3], gained_by_runs(step, step.runs))

    def _move(self, rule: Descent, step: Step, carrying: tuple[Tensor, Tensor]) -> None:
        before, gradient, known = self.weight, step.image, self.energy.sqrt()
        self.weight, self.momentum = rule.moved(before, self.momentum, gradient)
        sizes = self._length_squared(torch.stack([before, self.momentum, gradient]))
        errors, kept = carrying
        noise, reach = _combined(errors, (*self._noise, gained(step, sizes[2]))), self._reach
        weight, momentum, along = sizes.sqrt()
        # Three images of a column may all be near 0 by chance; what else is known of its length is not.
        weight = torch.maximum(weight, known / 2)
        if rule.has_momentum:
            reach = (
                abs(rule.momentum_momentum) * reach
                + abs(rule.momentum_weight) * known
                + abs(rule.momentum_gradient) * along
            )
        momentum = torch.maximum(momentum, reach / 8)
        alone, by_slow, slow, fast = _combined(kept, (*self._drag, weight, momentum, along))
        self._track(noise, torch.stack([torch.minimum(alone, by_slow), slow, fast]), reach)

    def _moved(self, rule: Descent, step: Step, carrying: tuple[Tensor, Tensor]) -> compiled.Moved | None:
        """Do the same in one loop, if there is one."""
        gain = (step.terms + 3) / 3, ONE_SIDED * step.terms, float(step.terms), LEAST
        images = self.weight, self.momentum, step.image, self._start
        return compiled.advance(rule.numbers, carrying, gain, images, self._base, step.energy, self._tracked)

    def _length_squared(self, image: Tensor) -> Tensor:
        """Estimate Σ_i W_ij² from images of W: (..., k, b) to (..., parts, b)."""
        return self._mean(image.square())

    def _mean(self, squares: Tensor) -> Tensor:
        """Return the mean over the vectors of each part: (..., parts * k, b) to (..., parts, b)."""
        return self._by_part(squares).mean(dim=-2)

    def _by_part(self, images: Tensor) -> Tensor:
        """Set the parts apart: (..., parts * k, b) to (..., parts, k, b)."""
        return images.reshape(*images.shape[:-2], len(self.parts), self._vectors, images.shape[-1])

    @property
    def energy(self) -> Tensor:
        """At least Σ_i W_ij², for each part: (*size, parts, b)."""
        return self._tracked[7]

    @property
    def strayed(self) -> Tensor:
        """Σ_i E_ij² of the weights' error E, expected, in units of κ u²: (*size, parts, b)."""
        return torch.addcmul(self._noise[0], self._drag[0], self._drag[0])

    @property
    def stretched(self) -> float:
        """By how much the weights have changed since they were last known, as a multiple of their length."""
        change = float(self._length_squared(self.weight - self._start).sum())
        return math.sqrt(change / max(float(self._base.sum()), LEAST))

    @property
    def drift(self) -> float:
        """The expected length of the weights' error, relative to the weights."""
        error = MEAN_SQUARE * UNIT_ROUNDOFF**2 * float(self.strayed.sum())
        return math.sqrt(error / max(float(self.energy.sum()), LEAST))

    def agrees(self, found: Sequence[Tensor], chosen: Sequence[int], across: Tensor | slice, z: float) -> bool:
        """Say whether images of weights and momentum are those that ours moved to, as far as rounding can tell.

        Args:
            found: the images of weights and of momentum (*size, k, b'), and Σ_i W_ij² (*size, 1, b').
            chosen: parts that they are of.
            across: which of the b they are of.
            z: standard deviations that are accepted.
        """
        *images, size = found
        slack = _SLACK * (LARGEST_SQUARE * self.secret.shape[1] * size).sqrt()
        for own, seen, strayed in zip((self.weight, self.momentum), images, self._strayed, strict=True):
            allowed = MEAN_SQUARE * UNIT_ROUNDOFF**2 * strayed[..., list(chosen), :].sum(dim=-2, keepdim=True)
            limit = z * (LARGEST_SQUARE * allowed).sqrt()[..., across] + slack
            if not bool(((seen - self._chosen(own, chosen)[..., across]).abs() <= limit).all()):
                return False
        return True

    def size(self, weight: Tensor) -> Tensor:
        """Return Σ_i W_ij²: (*size, parts, b)."""
        return self._project(self.parts, weight, (2,))

    @property
    def _strayed(self) -> tuple[Tensor, Tensor]:
        return self.strayed, self._noise[2] + self._drag[2].square()

    def _chosen(self, image: Tensor, chosen: Sequence[int]) -> Tensor:
        """Return the image of some parts together: (*size, k, b)."""
        if len(self.parts) == 1:
            return image
        return self._by_part(image)[..., list(chosen), :, :].sum(dim=-3)

    def secret_of(self, chosen: Sequence[int]) -> Tensor:
        """Return the secrets of some parts together: (k, a)."""
        return self._chosen(self.secret, chosen)

    def image_of(self, chosen: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """Return the image of the weights of some parts, as they are or were when `weight` was: (*size, k, b)."""
        return self._chosen(self.weight if weight is None else weight, chosen)

    def whole(self, terms: int) -> Vectors:
        """Return what checks sums of so many products of all parts: made once for the weights as they are."""
        tracked, held = self._tracked, self._whole
        if held is None or held[0] is not tracked or held[1] != terms:
            chosen = range(len(self.parts))
            found = compiled.spread(tracked, 3 / (terms + 3))
            secret, image = self.secret_of(chosen), self.image_of(chosen)
            if found is None:
                made = vectors_of(secret, image, self.spread_of(chosen, terms))
            else:
                made = Vectors(secret, image, found[0], LARGEST_SQUARE * found[1], _squares(secret))
            held = self._whole = tracked, terms, made
        return held[2]

    def spread_of(self, chosen: Sequence[int], terms: int) -> Tensor:
        """Return what stands for r² W² in the tolerance of sums of so many products: (*size, 1, b)."""
        both = LARGEST_SQUARE * self.energy + LARGEST_SQUARE * 3 / (terms + 3) * self.strayed
        return both if len(self.parts) == 1 else both[..., list(chosen), :].sum(dim=-2, keepdim=True)


def vectors_of(secret: Tensor, image: Tensor, spread: Tensor) -> Vectors:
    """Return secrets (k, a) with their image (*size, k, b), and what stands for r² W² (*size, 1, b)."""
    unit = float(spread.max()) or 1.0
    return Vectors(secret, image, (spread / unit).float(), unit, _squares(secret))


def _squares(secret: Tensor) -> Tensor:
    return torch.full((1, secret.shape[1]), LARGEST_SQUARE)


def _combined(matrix: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return linear combinations of n tensors of one shape, by a matrix (m, n): (m, *shape)."""
    return (matrix @ torch.stack(list(tensors)).flatten(1)).view(len(matrix), *tensors[0].shape)


def _lean(rule: Descent) -> float:
    """Return h: how far an error of the momentum, divided by itself, still moves the weights under this rule."""
    a, _, _, _, e, _ = rule.numbers
    return e * a / (1 - a) if abs(a) < 1 else 0.0


@lru_cache(maxsize=16)
def _carrying(rule: Descent, lean: float) -> tuple[Tensor, Tensor]:
    """Return how a step carries along what devices have strayed, by its six numbers and the h before it alone.

    The first matrix (3, 4) takes the covariance of errors in weights, in both, and in momentum, and the variance of the
    gradient's. The second (4, 6) takes bounds of |w|, |v| and |m|, and the lengths of weights, momentum and gradient,
    to two bounds of |w| and those of |v| and |m|.
    """
    a, b, c, d, e, f = rule.numbers
    own, cross, both = 1 + d + e * b, e * a, e * c + f
    errors = [
        [own**2, 2 * own * cross, cross**2, both**2],
        [own * b, own * a + cross * b, cross * a, both * c],
        [b**2, 2 * a * b, a**2, c**2],
    ]
    after = _lean(rule)
    rounded = 2.0 if rule.has_momentum else 0.0  # once when it is multiplied, once when it is added to
    of_momentum, of_weight = (abs(b), rounded, abs(c)), (2 * abs(d), 2 * abs(e), 2 * abs(f))

    def roundings(share: float) -> list[float]:
        return [abs(share) * one + other for one, other in zip(of_momentum, of_weight, strict=True)]

    weight = [abs(own), 0.0, abs(cross), *roundings(e)]
    slow = [0.0, abs(own + after * b), abs((e + after) * (a - b * lean) - (1 + d) * lean), *roundings(e + after)]
    fast = [abs(b), 0.0, abs(a), *of_momentum]
    by_slow = [one + abs(after) * other for one, other in zip(slow, fast, strict=True)]
    kept = [weight, by_slow, slow, fast]
    return torch.tensor(errors, dtype=torch.float64), torch.tensor(kept, dtype=torch.float64)
