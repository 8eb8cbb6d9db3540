"""Digits over TCP, from an event loop that never waits for the engine:  python service.py agent.toml IMAGES.npz"""

import asyncio
import sys
from asyncio import StreamReader, StreamWriter

import numpy as np

from edgeml.runtime import Agent

CLIENTS = 20
BEAT_S = 0.01
PIXELS = 64


async def main(config: str, images: str) -> None:
    with np.load(images, allow_pickle=False) as stored:
        field, digits = stored["image"], stored["y"]
    with Agent(config) as agent:
        meter = agent.model("meter")

        async def answer(reader: StreamReader, writer: StreamWriter) -> None:
            image = np.frombuffer(await reader.readexactly(4 * PIXELS), np.float32).reshape(1, 1, 8, 8)
            result = await meter.run_async({"image": image})  # the loop goes on meanwhile
            writer.write(f"{result.class_index}\n".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        heart = asyncio.create_task(beat())
        read = await asyncio.gather(*(ask(port, field[i].tobytes()) for i in range(CLIENTS)))
        heart.cancel()
        server.close()
    right = sum(digit == truth for digit, truth in zip(read, digits, strict=False))
    print(f"{right} of {CLIENTS} clients got the right digit, asked at the same time")


async def ask(port: int, image: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(image)
    digit = int(await reader.readline())
    writer.close()
    return digit


async def beat() -> None:
    """What else your application does; prints when the loop was held up for more than ten beats."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await asyncio.sleep(BEAT_S)
        if loop.time() - began > 10 * BEAT_S:
            print(f"the loop was held up for {loop.time() - began:.2f} s")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
