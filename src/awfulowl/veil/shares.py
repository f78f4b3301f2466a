"""Sharing in exact integers: what one domain gets is uniformly random, whatever it does with it.

Both are additive secret sharing (Ito, Saito, Nishizeki, "Secret sharing scheme realizing general access
structure", 1987) in Z_2^b. Rungs S3 and, for replicated shares, S2 of the papers' ladder: they answer stream
hijacking (P3) and, with weights, possession (P1, P2).

**Lemma** (one-time pad; Shannon 1949). Let x be part of z. If u is uniform in Z_2^b and independent of z, then x - u is
uniform and independent of z: for each z and v there is exactly one u with x - u = v. So of k shares u_1, ..., u_(k-1),
x - Σ u_i any k - 1 are uniform and independent of z: each set misses one, and it is the pad of the rest.

**Assumptions.** Domains do not pool what they get, beyond the threshold. Channels are private: each domain gets what is
sent to it and no more. Whoever runs the broker, or listens where there is no TLS, sees all lanes; frames that are
sealed (`fabric.sealed`) give private channels, and so do TLS and a broker of one's own. Random shares are keystreams of
AES-256: those of vectors under fresh keys from the operating system's generator, never used twice; those of weights
under keys that keyed BLAKE2b derives for each block and share from one such key, so that whoever takes over from a
device gets what it had. Under that key one weight is shared and no other: of two, a lane's W - u and W' - u would show
W' - W, so the owner sends no block that is not of the weights that were scattered (`owner.numbers`). "Uniform" holds
against whoever can break neither. The owner's guard (`base.SharedInputs`) and the placement keep two lanes of a column
out of one domain, over the whole history, whether shares travel as numbers or as seeds.

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

    **Theorem.** Any k - 1 domains learn nothing of the inputs, beyond what W says of them. **Proof.** They have W and
    k - 1 of k shares of x: by the lemma, for z = (x, W), uniform and independent of (x, W). What they compute is made
    of these.

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

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        """Return W x_i."""
        return (((), (lane,)),)


class Replicated(Sharing):
    """Three shares of weights and of inputs, at most two of each to every one of three domains.

    Domains answer W_0 x_1 + W_1 x_0, (W_1 + W_2)(x_1 + x_2) and W_2 x_0 + W_0 (x_0 + x_2): together all nine W_i x_j
    (Araki, Furukawa, Lindell, Nof, Ohara, "High-throughput semi-honest secure three-party computation with an honest
    majority", 2016, without its re-sharing: the owner adds the answers up). There each domain has three of the nine,
    W_i (x_i + x_(i+1)) + W_(i+1) x_i. Dealt out as here they are five products instead of six, and each factor is
    either a random share, which travels as its seed, or a sum with the last one, which travels whole: of the weights
    two, W_1 + W_2 = W - W_0 and W_2.

    **Theorem.** One domain learns nothing of weights, inputs and outputs. **Proof.** It holds at most two of three
    shares of W, or their sum, and the same of x: by the lemma, for z = (x, W), all uniform and independent of (x, W).
    Its answer is made of these. Of outputs it sees no other part. Any two domains have all three shares of both, so
    they learn everything: a coalition with a share f of many domains sees and holds 3 f² - 2 f³.

    **Fewest bytes.** Seeds say nothing of W. If all that depends on W were at one domain, the others' answers would not
    depend on it either, and that domain would have to multiply W by all of x. So two whole copies of W are the least.

    Lies are not detected by comparing replicas, as in protocols without a trusted party: the owner checks the sum.
    """

    name = "replicated"
    shares = lanes = 3
    threshold = 2
    whole = ((0, 0), (1, 0))
    hides_weights = True

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        """Return W_0 x_1 and W_1 x_0, or (W_1 + W_2)(x_1 + x_2), or W_2 x_0 and W_0 (x_0 + x_2)."""
        return _REPLICATED[lane]


_REPLICATED = (
    (((0,), (1,)), ((1,), (0,))),
    (((1, 2), (1, 2)),),
    (((2,), (0,)), ((0,), (0, 2))),
)


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
