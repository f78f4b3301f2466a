"""A fabric inside another one, for brokers that somebody else runs.

Attack: whoever runs the broker, or controls it, reads every frame, answers in the place of others, alters frames,
moves them between devices, channels and directions, holds them back and sends them again.

Construction: owner and device know each other's X25519 key from enrolment. Each end of a connection draws a random
salt S, and what one end sends is sealed under

    K = HKDF-SHA256(secret = X25519(own key, peer's key), salt = S,
                    info = label | direction | owner's key | device's key | device's name)
    frame = S | n | ChaCha20-Poly1305(K, nonce = n, payload, associated data = channel),    n = 0, 1, 2, ...

(RFC 7748, 5869, 8439). Both ends of the static secret are authenticated by it, so a frame that opens comes from the
peer, in this direction, on this channel. A restart draws another S and so another K: no nonce is ever used twice
under one key. A frame is accepted once: a window of `WINDOW` numbers per salt refuses repetitions and what is older.

Not hidden: who talks to whom, when, how much (sizes of frames plus `OVERHEAD_BYTES`), and how many frames are lost.
Not stopped: dropping and delaying; replaying frames of an earlier connection to a receiver that has restarted since,
or that has met `SALTS` newer connections of that sender: the session above refuses those by its handle. There is no
forward secrecy: who steals a device's identity file can open what was recorded of that device.
"""

import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from awfulowl.errors import InputError, ProtocolError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.fabric.identity import KEY_BYTES, Identity
from awfulowl.randomness import SYSTEM
from awfulowl.wire.session.replay import Window

_LABEL: Final = b"awfulowl sealed fabric 1"
_SALT_BYTES: Final = 16
_TAG_BYTES: Final = 16
_NUMBER: Final = struct.Struct("<4xQ")
"""The nonce: 12 bytes, of which the last 8 are the number of the frame, little-endian."""

_HEAD_BYTES: Final = _SALT_BYTES + _NUMBER.size
OVERHEAD_BYTES: Final = _HEAD_BYTES + _TAG_BYTES

WINDOW: Final = 4096
"""Frames that may overtake one another; many more than are ever under way between two ends."""

SALTS: Final = 64
"""Connections of one peer whose windows are kept."""


class SealedFabric(Fabric):
    """Seals what goes through `inner` between the owner and each device.

    `peers` maps names to the X25519 keys of their enrolments; a device knows `OWNER` only. It is looked up at every
    frame: who is added may talk from then on, who is removed no more.
    """

    def __init__(self, inner: Fabric, identity: Identity, peers: Mapping[str, bytes]) -> None:
        self._inner = inner
        self._identity = identity
        self._peers = peers

    async def _join(self, me: str, receive: Receive) -> "SealedLink":
        if me != self._identity.name:
            raise InputError(f"this identity is of {self._identity.name!r}: it cannot join as {me!r}")
        # Never from a seed: equal salts would be equal keys, under which nonces repeat.
        keys = _Keys(self._identity, self._peers, SYSTEM.bytes(_SALT_BYTES))
        opener = _Opener(keys, receive)
        inner = await self._inner.join(me, opener.receive)
        return SealedLink(inner, keys, opener)


class SealedLink(Link):
    """One end; `refused` counts the frames that did not open and were dropped."""

    def __init__(self, inner: Link, keys: "_Keys", opener: "_Opener") -> None:
        super().__init__(inner.me, inner.max_payload_bytes - OVERHEAD_BYTES)
        inner.when_ended(self._end)
        self._inner = inner
        self._keys = keys
        self._opener = opener

    @property
    def refused(self) -> int:
        """Frames that did not open: altered, forged, repeated, or of nobody we know."""
        return self._opener.refused

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        frame = self._keys.pair(peer).seal(payload, channel)
        await self._inner.send(peer, frame, channel)

    async def _close(self) -> None:
        await self._inner.close()


class _Opener:
    def __init__(self, keys: "_Keys", receive: Receive) -> None:
        self.refused = 0
        self._keys = keys
        self._receive = receive

    def receive(self, peer: str, channel: Channel, frame: Payload) -> None:
        try:
            payload = self._keys.pair(peer).open(frame, channel)
        except (InputError, ProtocolError):
            self.refused += 1
            return
        self._receive(peer, channel, payload)


class _Keys:
    """The pairs that this end makes with its peers."""

    def __init__(self, identity: Identity, peers: Mapping[str, bytes], salt: bytes) -> None:
        self._me = identity.name
        self._private = X25519PrivateKey.from_private_bytes(identity.seal_private)
        self._public = identity.enrolment.seal_public
        self._peers = peers
        self._salt = salt
        self._pairs: dict[str, tuple[bytes, _Pair]] = {}

    def pair(self, peer: str) -> "_Pair":
        """Return what seals and opens frames to and from `peer`.

        Raises:
            InputError: no key of that name is known, or it is no key.
        """
        public = self._peers.get(peer)
        if public is None:
            self._pairs.pop(peer, None)
            raise InputError(f"no key of {peer!r:.80} is known: enrol it first")
        known, pair = self._pairs.get(peer, (None, None))
        if pair is None or known != public:
            pair = self._make(peer, public)
            self._pairs[peer] = public, pair
        return pair

    def _make(self, peer: str, public: bytes) -> "_Pair":
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise InputError(f"the X25519 key of {peer!r:.80} is none: enrol it again") from error
        mine, its = (self._public, public), (public, self._public)
        owner, device = mine if self._me == OWNER else its
        name = peer if self._me == OWNER else self._me
        context = owner + device + name.encode()
        down, up = _LABEL + b" down " + context, _LABEL + b" up " + context
        return _Pair(secret, self._salt, *((down, up) if self._me == OWNER else (up, down)))


class _Pair:
    """Seals to one peer under one salt; opens frames of any connection of that peer, each once."""

    def __init__(self, secret: bytes, salt: bytes, sends: bytes, receives: bytes) -> None:
        self._secret = secret
        self._salt = salt
        self._cipher = self._derive(salt, sends)
        self._sent = 0
        self._receives = receives
        self._heard: OrderedDict[bytes, tuple[ChaCha20Poly1305, Window]] = OrderedDict()

    def _derive(self, salt: bytes, info: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(HKDF(SHA256(), KEY_BYTES, salt, info).derive(self._secret))

    def seal(self, payload: Payload, channel: Channel) -> bytes:
        nonce = _NUMBER.pack(self._sent)
        self._sent += 1
        return b"".join([self._salt, nonce, self._cipher.encrypt(nonce, payload, channel.value.encode())])

    def open(self, frame: Payload, channel: Channel) -> bytes:
        """Return the payload.

        Raises:
            ProtocolError: the frame is cut short, was not sealed by the peer, or came before.
        """
        if len(frame) < OVERHEAD_BYTES:
            raise ProtocolError("a sealed frame is cut short")
        view = memoryview(frame)
        salt, nonce = bytes(view[:_SALT_BYTES]), view[_SALT_BYTES:_HEAD_BYTES]
        known = self._heard.get(salt)
        cipher, window = known if known is not None else (self._derive(salt, self._receives), Window(WINDOW))
        try:
            payload = cipher.decrypt(nonce, view[_HEAD_BYTES:], channel.value.encode())
        except InvalidTag as error:
            raise ProtocolError("a sealed frame does not open") from error
        # Only now: what does not open may neither use up numbers nor push out what is remembered.
        number = _NUMBER.unpack(nonce)[0]
        if number in window:
            raise ProtocolError("a sealed frame came before")
        window.add(number)
        self._heard[salt] = cipher, window
        self._heard.move_to_end(salt)
        while len(self._heard) > SALTS:
            self._heard.popitem(last=False)
        return payload
