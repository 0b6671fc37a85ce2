#!/usr/bin/env node
// The contract of hotdeploy, kept by a Node app (18 or newer) with nothing but
// the standard library: short HTTP requests and WebSockets that outlive a deploy.
//
// What makes a deploy invisible to its clients, marked CONTRACT below:
// 1. it serves the socket that it was passed (fd 3), if LISTEN_PID is its own pid;
// 2. it says READY=1 when it accepts. Node has no unix datagram sockets, so that
//    takes the program systemd-notify; where there is none, let the release use
//    the readiness "http" or "tcp" instead of "notify";
// 3. after SIGTERM it accepts nothing more, closes nothing, and exits when the
//    last client has left.
"use strict";

const { spawn } = require("node:child_process");
const crypto = require("node:crypto");
const http = require("node:http");

const VERSION = process.env.HOTDEPLOY_VERSION || "dev";
const GENERATION = process.env.HOTDEPLOY_GENERATION || "";
const WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MORE = 0x0, TEXT = 0x1, CLOSE = 0x8, PING = 0x9, PONG = 0xa;
const MAX_MESSAGE = 65536;
// Node calls listen() on an inherited socket too, with 511 unless told: that
// would shorten the queue that all generations share. The kernel cuts it down
// to net.core.somaxconn.
const BACKLOG = 65535;

let draining = false;

const server = http.createServer((req, res) => {
  res.setHeader("Content-Type", "text/plain; charset=utf-8");
  res.setHeader("X-Generation", GENERATION);
  res.setHeader("X-Pid", process.pid);
  if (draining) res.setHeader("Connection", "close");
  const path = req.url.split("?", 1)[0];
  if (req.method === "GET" && path === "/version") {
    res.end(VERSION);
  } else if (req.method === "GET" && path === "/healthz") {
    res.end("ok\n");
  } else {
    res.statusCode = 404;
    res.end("no such page\n");
  }
});

server.on("upgrade", (req, socket, head) => {
  const key = req.headers["sec-websocket-key"];
  if (req.url.split("?", 1)[0] !== "/ws" || !key) {
    socket.end("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    return;
  }
  const accept = crypto.createHash("sha1").update(key + WEBSOCKET_GUID).digest("base64");
  socket.setNoDelay(true);
  socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
    `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  echo(socket, head);
});

// echo answers each text message until the client leaves.
function echo(socket, head) {
  let count = 0;
  let pending = head; // bytes that are no whole frame yet
  let message = null; // frames that are no whole message yet
  const take = (chunk) => {
    pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
    for (;;) {
      const frame = readFrame(pending);
      if (frame === null) return; // more to come
      if (frame.error) {
        socket.destroy();
        return;
      }
      pending = pending.subarray(frame.end);
      if (frame.opcode === TEXT || frame.opcode === MORE) {
        message = frame.opcode === TEXT ? frame.payload : Buffer.concat([message || Buffer.alloc(0), frame.payload]);
        if (message.length > MAX_MESSAGE) {
          socket.destroy();
          return;
        }
        if (!frame.last) continue;
        count++;
        const reply = { n: count, v: VERSION, pid: process.pid, echo: message.toString() };
        writeFrame(socket, TEXT, Buffer.from(JSON.stringify(reply)));
        message = null;
      } else if (frame.opcode === PING) {
        writeFrame(socket, PONG, frame.payload);
      } else if (frame.opcode === CLOSE) {
        writeFrame(socket, CLOSE, frame.payload.subarray(0, 2));
        socket.end();
        return;
      }
    }
  };
  socket.on("data", take);
  socket.on("end", () => socket.end());
  socket.on("error", () => socket.destroy());
  take(Buffer.alloc(0));
}

// readFrame takes one frame of the client off the front of buf; null means that
// it is not complete.
function readFrame(buf) {
  if (buf.length < 2) return null;
  if (!(buf[1] & 0x80)) return { error: true }; // a client must mask
  let size = buf[1] & 0x7f;
  let at = 2;
  if (size === 126) {
    if (buf.length < 4) return null;
    size = buf.readUInt16BE(2);
    at = 4;
  } else if (size === 127) {
    if (buf.length < 10) return null;
    size = Number(buf.readBigUInt64BE(2));
    at = 10;
  }
  if (size > MAX_MESSAGE) return { error: true };
  if (buf.length < at + 4 + size) return null;
  const mask = buf.subarray(at, at + 4);
  const payload = Buffer.from(buf.subarray(at + 4, at + 4 + size));
  for (let i = 0; i < payload.length; i++) payload[i] ^= mask[i & 3];
  return { last: (buf[0] & 0x80) !== 0, opcode: buf[0] & 0x0f, payload, end: at + 4 + size };
}

function writeFrame(socket, opcode, payload) {
  let head;
  if (payload.length < 126) {
    head = Buffer.from([0x80 | opcode, payload.length]);
  } else if (payload.length < 65536) {
    head = Buffer.from([0x80 | opcode, 126, 0, 0]);
    head.writeUInt16BE(payload.length, 2);
  } else {
    head = Buffer.from([0x80 | opcode, 127, 0, 0, 0, 0, 0, 0, 0, 0]);
    head.writeBigUInt64BE(BigInt(payload.length), 2);
  }
  socket.write(Buffer.concat([head, payload]));
}

// CONTRACT 2, said by a child in our name. Where it is missing we say so and go on.
function notify(...state) {
  if (!process.env.NOTIFY_SOCKET) return;
  const child = spawn("systemd-notify", state, { stdio: ["ignore", "inherit", "inherit"] });
  child.on("error", (err) => {
    console.error(`nodeecho: warning: systemd-notify: ${err.message}; use readiness "http" or "tcp"`);
  });
}

// CONTRACT 1: the inherited socket, or one of our own.
function whereToListen() {
  if (process.env.LISTEN_PID === String(process.pid) && Number(process.env.LISTEN_FDS) > 0) {
    return { fd: 3 };
  }
  const addr = process.env.NODEECHO_ADDR || "127.0.0.1:8080";
  const colon = addr.lastIndexOf(":");
  return { host: addr.slice(0, colon), port: Number(addr.slice(colon + 1)) };
}

// CONTRACT 3. close() also waits for upgraded connections; idle ones that are
// kept alive it ends, since no answer is owed on them.
process.on("SIGTERM", () => {
  if (draining) return;
  draining = true;
  notify("STOPPING=1", `STATUS=draining ${VERSION}`);
  server.close(() => process.exit(0));
});

server.listen(whereToListen(), BACKLOG, () => {
  notify("READY=1", `STATUS=serving ${VERSION}`);
  const { address, port } = server.address() || {};
  console.error(`nodeecho: version ${VERSION} serving on ${address}:${port}`);
});
