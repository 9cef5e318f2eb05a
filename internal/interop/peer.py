# The peer that is Python's websockets. It does what peer.mjs and node.mjs do.
#
# Each line on stdin is a command, each line on stdout the answer to one, in
# order: {"value": ...} or {"error": "..."}. The end of stdin ends everything.
import asyncio
import json
import os
import ssl
import sys
import traceback
import zlib

import websockets


def cook(m):
    if m["text"]:
        return m["unit"] * m["times"] + m["tail"]
    return bytes.fromhex(m["unit"]) * m["times"] + bytes.fromhex(m["tail"])


def describe(data):
    text = isinstance(data, str)
    if text:
        data = data.encode()
    return {"text": text, "bytes": len(data), "crc": zlib.crc32(data)}


async def follow(ws, steps):
    report = {"opened": True, "messages": [], "pongs": [], "protocol": ws.subprotocol or ""}
    report["extensions"] = ws.response_headers.get("Sec-WebSocket-Extensions", "") if hasattr(ws, "response_headers") \
        else ws.response.headers.get("Sec-WebSocket-Extensions", "")
    news = asyncio.Condition()
    ended = False

    async def read():
        nonlocal ended
        try:
            async for m in ws:
                async with news:
                    report["messages"].append(describe(m))
                    news.notify_all()
        except websockets.ConnectionClosed:
            pass
        async with news:
            ended = True
            news.notify_all()

    reading = asyncio.ensure_future(read())

    async def go():
        for s in steps:
            if s["op"] == "send":
                await ws.send(cook(s["message"]))
            elif s["op"] == "fragments":
                m, size = cook(s["message"]), s["size"]
                await ws.send([m[i:i + size] for i in range(0, len(m), size)])
            elif s["op"] == "receive":
                async with news:
                    await news.wait_for(lambda: len(report["messages"]) >= s["count"] or ended)
            elif s["op"] == "ping":
                await (await ws.ping(s["payload"]))
                report["pongs"].append(s["payload"])
            elif s["op"] == "close":
                await ws.close(s["code"], s["reason"])
            else:
                raise ValueError(s["op"])

    async def everything():
        try:
            await go()
        except websockets.ConnectionClosed:
            pass
        await reading
        await ws.wait_closed()

    try:
        await asyncio.wait_for(everything(), 20)
    except asyncio.TimeoutError:
        report["late"] = True
    # Newer versions keep the two frames elsewhere.
    frames = ws if hasattr(ws, "close_rcvd") else ws.protocol
    report["close"] = {
        "code": ws.close_code,
        "reason": ws.close_reason,
        "clean": frames.close_rcvd is not None and frames.close_sent is not None,
    }
    return report


class Peer:
    async def dial(self, c):
        try:
            # Its own pings would only blur what is looked at.
            ws = await websockets.connect(c["url"], subprotocols=c["protocols"] or None, max_size=None, ping_interval=None)
        except (websockets.InvalidHandshake, OSError) as e:
            return {"opened": False, "refusal": str(e)}
        return await follow(ws, c["steps"])

    async def listen(self, c):
        context = None
        if c["tls"]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(os.environ["PEERWS_CERT"], os.environ["PEERWS_KEY"])
        self.report = asyncio.get_running_loop().create_future()

        async def handle(ws):
            try:
                self.report.set_result(await follow(ws, c["steps"]))
            except Exception as e:
                self.report.set_exception(e)

        self.server = await websockets.serve(
            handle, "127.0.0.1", 0, subprotocols=c["protocols"] or None, ssl=context, max_size=None, ping_interval=None)
        return self.server.sockets[0].getsockname()[1]

    async def accepted(self, c):
        report = await self.report
        self.server.close()
        return report


async def main():
    peer = Peer()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            command = json.loads(line)
            answer = {"value": await getattr(peer, command["op"])(command)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


asyncio.run(main())
