"""Sharing in exact integers: what one domain gets is uniformly random, whatever it does with it.

Both are additive secret sharing (Ito, Saito, Nishizeki, "Secret sharing scheme realizing general access
structure", 1987) in Z_2^b. Rungs S3 and, for replicated shares, S2 of the papers' ladder: they answer stream
hijacking (P3) and, with weights, possession (P1, P2).

**Lemma** (one-time pad; Shannon 1949). If u is uniform in Z_2^b and independent of x, then x - u is uniform and
independent of x: for each v there is exactly one u with x - u = v. So of k shares u_1, ..., u_(k-1), x - Σ u_i
any k - 1 are uniform and independent of x: each set misses one, and it is the pad of the rest.

**Assumptions.** Domains do not pool what they get, beyond the threshold. Random shares are keystreams of AES-256 under
fresh keys from the operating system's generator, so "uniform" holds against whoever cannot break AES. Shares are drawn
for each vector anew, and never used twice. The owner's guard (`base.SharedInputs`) and the placement keep two lanes of
a column out of one domain, over the whole history.

**Not hidden**: shapes, how many vectors there are and when, which layer a block belongs to (by its traffic), which
arithmetic is used; whether an answer was accepted, as far as behaviour shows it. Activations between layers are at the
owner in the clear.
"""

from collections.abc import Sequence

from awfulowl.errors import InputError
from awfulowl.veil.base import Sharing, Sum, Unshared

MOST_SHARES = 8


class InputShares(Sharing):
    """k additive shares of each input to k domains that all hold the weights.

    **Theorem.** Any k - 1 domains learn nothing of the inputs. **Proof.** They have k - 1 of k shares: by the
    lemma, uniform and independent of x. What they compute is made of that and of W, which is independent of x.

    With one domain to each lane, a coalition with a share f of many domains sees f^k of the inputs, but holds
    1 - (1 - f)^k of the weights.
    """

    whole = ((0, 0),)
    hides_weights = False

    def __init__(self, shares: int) -> None:
        """Split into so many shares.

        Raises:
            InputError: fewer than 2 hide nothing, more than 8 are a slip.
        """
        if not 2 <= shares <= MOST_SHARES:
            raise InputError(f"sharing 'inputs:{shares}': between 2 and {MOST_SHARES} shares make sense")
        self.name = f"inputs:{shares}"
        self.shares = self.lanes = self.threshold = shares

    def products(self, lane: int) -> Sequence[tuple[Sum, int]]:
        """Return W x_i."""
        return (((), lane),)


class Replicated(Sharing):
    """Three shares of weights and of inputs, two of each to every one of three domains.

    Domain i answers (W_i + W_(i+1)) x_i + W_i x_(i+1), which are three of the nine products W_i x_j, and the three
    domains' answers are all nine (Araki, Furukawa, Lindell, Nof, Ohara, "High-throughput semi-honest secure three-party
    computation with an honest majority", 2016, without its re-sharing: the owner adds the answers up).

    **Theorem.** One domain learns nothing of weights, inputs and outputs. **Proof.** It holds W_i + W_(i+1) and
    W_i, which is to say two of three shares of W, and two of three of x: by the lemma all uniform, and
    independent of W and of x. Its answer is made of these. Of outputs it sees no other part. Two domains have
    all three shares of both, so they learn everything: a coalition with a share f of many domains sees and
    holds 3 f² - 2 f³.

    Lies are not detected by comparing replicas, as in protocols without a trusted party: the owner checks the sum.
    """

    name = "replicated"
    shares = lanes = 3
    threshold = 2
    whole = ((0, 0), (2, 1))
    hides_weights = True

    def products(self, lane: int) -> Sequence[tuple[Sum, int]]:
        """Return (W_i + W_(i+1)) x_i and W_i x_(i+1)."""
        after = (lane + 1) % 3
        return (((lane, after), lane), ((lane,), after))


SHARINGS = ("inputs:2", "inputs:3", "replicated")
"""What is tested as a whole; inputs:4 to inputs:8 are the same with more shares."""


def sharing_of(name: str | None) -> Sharing:
    """Return the sharing of that name; None shares nothing.

    Raises:
        InputError: there is no such sharing.
    """
    if name is None:
        return Unshared()
    if name == Replicated.name:
        return Replicated()
    kind, _, count = name.partition(":")
    if kind == "inputs" and count.isascii() and count.isdigit() and len(count) <= 3:
        return InputShares(int(count))
    raise InputError(
        f"sharing {name!r} is none of inputs:2 to inputs:{MOST_SHARES} and replicated; leave it out to share nothing"
    )
