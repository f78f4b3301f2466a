"""The client of nats-py, made strict: the broker must encrypt if asked to, and may not fill our memory."""

from nats import errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

from awfulowl.limits import MIB


class StrictClient(Client):
    """Says nothing in the clear if TLS was asked for, stores nothing that is too large, and closes after a break."""

    def __init__(self, max_payload_bytes: int) -> None:
        super().__init__()
        self._ps = _StrictParser(self, max_payload_bytes)

    def _connect_command(self) -> bytes:
        # The base class encrypts when the server says so, whatever the address: who sits in between has only to deny
        # it. This is called last before anything is sent, at the first connection and at every later one.
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise errors.SecureConnRequiredError
        return super()._connect_command()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:
            self._status = status  # it never got as far as a connection
            return
        if self._transport is None or not self.is_connected or self._transport.at_eof():
            # The base class would write what waits to a socket that is closed, and leave its tasks behind.
            self._pending.clear()
            self._pending_data_size = 0
        await super()._close(status, do_cbs)


class _StrictParser(Parser):
    """The base class stores as many bytes as the server announces, or sends without an end of line."""

    def __init__(self, client: Client, max_payload_bytes: int) -> None:
        super().__init__(client)
        self._max_bytes = max_payload_bytes + MIB  # headers, and what one read of the socket brings beyond

    async def parse(self, data: bytes = b"") -> None:
        await super().parse(data)
        if max(self.needed, len(self.buf)) > self._max_bytes:
            self.needed = 0
            raise errors.ProtocolError
