"""How long the owner waits, how often it asks, and what it does with those who lie."""

from dataclasses import dataclass

from awfulowl.limits import GIB, MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Times in seconds, sizes in bytes; every field may be changed when a fleet is opened."""

    request_timeout_s: float = 60.0
    """A product that is not done by then fails with `UnavailableError`."""

    answer_timeout_s: float = 10.0
    """A device that has not answered by then is passed over for this request."""

    lease_s: float = 30.0
    """A device that hears nothing for so long drops its blocks."""

    heartbeat_s: float = 1.0
    """Beat in both directions."""

    silence_s: float = 5.0
    """A device that is silent for longer is gone."""

    hedge_factor: float = 4.0
    """A replica is asked too once an answer takes this many times its usual time."""

    hedge_min_s: float = 0.05
    """A replica is never asked earlier than this: short waits are noise."""

    hedge_first_s: float = 2.0
    """The wait before a replica is asked while nothing is known about the usual time."""

    straggler_factor: float = 4.0
    """An answer that nobody else can give is late once it takes this many times the wait before a replica is asked."""

    straggler_min_s: float = 1.0
    """No answer is late earlier than this: loading blocks elsewhere takes some time, too."""

    straggler_after: int = 3
    """A device that serves blocks alone and is late so many times in a row has them loaded onto devices which are this
    much quicker (`straggler_factor`) as well, where the rules allow it, and is asked for them last from then on."""

    repair_after_s: float = 3.0
    """A block whose holders are all gone for longer is given to another device even before it is asked for. While one
    of them is there, and answers, nobody else gets to see it; a device that comes back gets its blocks again."""

    return_s: float = 30.0
    """A training waits so long for a device to come back that may hold what nobody who is there may, before it gives
    up; not longer than a product may take."""

    part_bytes: int = 8 * MIB
    """Batches are cut so that no message is much larger: parts travel while others are multiplied. Each part costs
    some milliseconds of all cores together, so smaller ones are slower (benchmarks/README.md)."""

    parts_in_flight: int = 8
    """Parts of one product under way at once."""

    math_threads: int = 2
    """Threads of the owner's arithmetic, beside the user's. They are started when a fleet is opened."""

    load_bytes: int = 32 * MIB
    """Sheets of about this size are loaded: a device multiplies by each of them alone, and the fewer the quicker. More
    than a session's credit may be more than a broker keeps for a slow line."""

    verify: bool = True
    """Check every answer. Off only to measure what the check costs."""

    renew_after: int = 100_000
    """Check vectors are drawn anew after so many products of a panel, and after every failed check."""

    snapshot_after: int = 1000
    """Steps of training after which the state of a panel is fetched, verified and kept, and new secrets are drawn."""

    snapshot_failures: int = 8
    """Failed checks after which the same is done."""

    snapshot_stretch: float = 2.0
    """The same is done when weights have changed by so many times their length: what is known of their size is old."""

    snapshot_drift: float = 3e-5
    """The same is done when devices may have moved the weights unseen by so many times their length since the last
    snapshot, so that lies of 1e-3 are caught late in a period as early (benchmarks/README.md)."""

    snapshot_log: float = 32.0
    """The same is done when the inputs and gradients since the last snapshot take so many times the bytes of the state:
    a snapshot costs little beside them then, and a block is rebuilt in the time of so many loads."""

    log_bytes: int = GIB
    """Inputs and gradients since the last snapshots that the owner keeps, to rebuild blocks from; when there are more,
    the panels are snapshot whose state is small beside their part of it."""

    reworked: float = 0.1
    """The share of each device's blocks of a panel, at least one, that the owner rebuilds at a snapshot, to see whether
    Adam moved them as it should (`owner.auditing`)."""

    cover_s: tuple[float, float] = (5.0, 30.0)
    """A quarantined device goes on getting old inputs for a random time in this range, so that it learns late."""

    max_violations: int = 256
    """A device that sends more frames than this which can be nobody's but a liar's is quarantined, and not heard any
    longer: undecodable ones, forged ones, what is not for a device to say."""

    flood_s: float = 60.0
    """A device that sends more of the following in this time is treated in the same way."""

    max_unasked: int = 512
    """Answers to nothing that was asked, messages of sessions that are over, and calls in a session that is open. Late
    answers, one for each time that something was asked, are none of these."""

    max_damaged: int = 1024
    """Frames whose check sum is wrong, less the answers that came whole: on a bad line some of both come."""

    max_starts: int = 64
    """New starts of a device, and reports of blocks that it dropped: each has blocks loaded again."""
