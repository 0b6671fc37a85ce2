#!/usr/bin/env python3
"""The contract of hotdeploy, kept by a Python app with nothing but the standard
library: short HTTP requests and WebSockets that outlive a deploy.

What makes a deploy invisible to its clients, marked CONTRACT below:
1. it serves the socket that it was passed (fd 3), if LISTEN_PID is its own pid;
2. it says READY=1 when it accepts;
3. after SIGTERM it accepts nothing more, closes nothing, and exits when the last
   client has left.
"""

import asyncio
import base64
import hashlib
import json
import os
import signal
import socket
import struct
import sys

VERSION = os.environ.get("HOTDEPLOY_VERSION", "dev")
GENERATION = os.environ.get("HOTDEPLOY_GENERATION", "")
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MORE, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
MAX_HEAD, MAX_MESSAGE, REQUEST_SECONDS = 16384, 65536, 30


def open_listener():
    """CONTRACT 1: the inherited socket, or one of our own.

    No listen() on an inherited one: it would change the length of the queue
    that all generations share."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and int(os.environ.get("LISTEN_FDS", "0")) > 0:
        os.set_inheritable(3, False)
        listener = socket.socket(fileno=3)
    else:
        host, _, port = os.environ.get("PYECHO_ADDR", "127.0.0.1:8080").rpartition(":")
        listener = socket.create_server((host, int(port)), backlog=4096)
    listener.setblocking(False)
    return listener


def notify(state):
    """CONTRACT 2: one datagram to the supervisor; without one, to nobody."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect(path)
        out.sendall(state.encode())


class App:
    def __init__(self, listener):
        self.loop = asyncio.get_running_loop()
        self.listener = listener
        self.clients = set()  # one task per connection, from accept to close
        self.drained = asyncio.Event()
        self.stopping = False

    def start(self):
        self.loop.add_reader(self.listener, self.accept)
        self.loop.add_signal_handler(signal.SIGTERM, self.stop)

    def accept(self):
        # Another generation may have been quicker: that is the normal case.
        try:
            conn, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        conn.setblocking(False)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Counted here, without an await since accept: stop() cannot come between.
        task = self.loop.create_task(self.serve(conn))
        self.clients.add(task)
        task.add_done_callback(self.left)

    def left(self, task):
        self.clients.discard(task)
        if self.stopping and not self.clients:
            self.drained.set()

    def stop(self):
        """CONTRACT 3: accept nothing more. Our copy of the socket is closed; the
        queue lives on with the next generation."""
        if self.stopping:
            return
        self.stopping = True
        self.loop.remove_reader(self.listener)
        self.listener.close()
        notify(f"STOPPING=1\nSTATUS=draining {VERSION}, {len(self.clients)} connections left")
        if not self.clients:
            self.drained.set()

    async def serve(self, conn):
        reader, writer = await asyncio.open_connection(sock=conn, limit=MAX_HEAD)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
            await self.answer(head, reader, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass  # the client's affair
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass

    async def answer(self, head, reader, writer):
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in filter(None, lines[1:]):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        path = target.partition("?")[0]
        if method != "GET":
            await respond(writer, "405 Method Not Allowed", "GET only\n")
        elif path == "/version":
            await respond(writer, "200 OK", VERSION)
        elif path == "/healthz":
            await respond(writer, "200 OK", "ok\n")
        elif path == "/ws" and headers.get("upgrade", "").lower() == "websocket":
            await self.websocket(headers, reader, writer)
        else:
            await respond(writer, "404 Not Found", "no such page\n")

    async def websocket(self, headers, reader, writer):
        key = headers.get("sec-websocket-key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        count, message = 0, None  # message: its frames so far
        while True:
            last, opcode, payload = await read_frame(reader)
            if opcode in (TEXT, MORE):
                message = payload if opcode == TEXT else (message or b"") + payload
                if len(message) > MAX_MESSAGE:
                    raise ValueError("a message that is too long")
                if last:
                    count += 1
                    reply = {"n": count, "v": VERSION, "pid": os.getpid(), "echo": message.decode()}
                    write_frame(writer, TEXT, json.dumps(reply, ensure_ascii=False).encode())
                    message = None
            elif opcode == PING:
                write_frame(writer, PONG, payload)
            elif opcode == CLOSE:
                write_frame(writer, CLOSE, payload[:2])
                await writer.drain()
                return
            await writer.drain()


async def respond(writer, status, body):
    data = body.encode()
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(data)}\r\n"
        f"X-Generation: {GENERATION}\r\nX-Pid: {os.getpid()}\r\nConnection: close\r\n\r\n".encode() + data
    )
    await writer.drain()


async def read_frame(reader):
    """One frame of the client: whether it is the last of its message, what it is, and its bytes."""
    first, second = await reader.readexactly(2)
    if not second & 0x80:
        raise ValueError("a frame of a client that is not masked")
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await reader.readexactly(8))
    if size > MAX_MESSAGE:
        raise ValueError("a message that is too long")
    mask = await reader.readexactly(4)
    data = await reader.readexactly(size)
    return bool(first & 0x80), first & 0x0F, bytes(b ^ mask[i & 3] for i, b in enumerate(data))


def write_frame(writer, opcode, payload):
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
    writer.write(head + payload)


async def main():
    listener = open_listener()
    app = App(listener)
    app.start()
    notify(f"READY=1\nSTATUS=serving {VERSION}")
    print(f"pyecho: version {VERSION} serving on {listener.getsockname()}", file=sys.stderr, flush=True)
    await app.drained.wait()


if __name__ == "__main__":
    asyncio.run(main())
