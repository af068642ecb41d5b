"""How far to read ahead in a tar in a bucket: fsspec's caches and tatok's own way, at several distances to the store.

    make bench-read-ahead

The store is SeaweedFS behind a proxy in a process of its own, which holds every answer back by so many milliseconds and
lets each connection have so many megabytes a second. A sample may take time to decode, in which a cache can fetch. Each
measurement is a process of its own, so that its peak memory is known; the variants take turns, and every round's times
are divided by those of what fsspec does by itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import fsspec
import typer

from tests.support.services.real_services import Store, free_ports, seaweedfs

MB = 10**6
MIB = 1 << 20
BACKGROUND: dict[str, Any] = {"cache_type": "background", "cache_options": {"maxblocks": 2}}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "fsspec's own": {},
    "tatok's": None,
    "none": {"cache_type": "none"},
    "readahead 1 MiB": {"cache_type": "readahead", "block_size": MIB},
    "readahead 4 MiB": {"cache_type": "readahead", "block_size": 4 * MIB},
    "readahead 16 MiB": {"cache_type": "readahead", "block_size": 16 * MIB},
    "bytes 4 MiB": {"cache_type": "bytes", "block_size": 4 * MIB},
    "bytes 16 MiB": {"cache_type": "bytes", "block_size": 16 * MIB},
    "background 2 MiB": BACKGROUND | {"block_size": 2 * MIB},
    "background 4 MiB": BACKGROUND | {"block_size": 4 * MIB},
    "background 8 MiB": BACKGROUND | {"block_size": 8 * MIB},
    "background 16 MiB": BACKGROUND | {"block_size": 16 * MIB},
    "adaptive 8 MiB": {"cache_type": "adaptive", "block_size": 8 * MIB},
}
OWN = "fsspec's own"


@contextmanager
def distant(port: int, *, delay_s: float, bytes_a_s: float) -> Iterator[int]:
    """The port of a proxy before `port` that answers late, and not faster than that on each connection."""
    [far] = free_ports(1)
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(far, port, delay_s, bytes_a_s), daemon=True
    )
    process.start()
    try:
        yield far
    finally:
        process.terminate()
        process.join()


def _serve(far: int, port: int, delay_s: float, bytes_a_s: float) -> None:
    connections = set[asyncio.Task[None]]()  # asyncio itself remembers none

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
        ways = (_pump(reader, there_writer, 0.0, math.inf), _pump(there_reader, writer, delay_s, bytes_a_s))
        await asyncio.gather(*ways, return_exceptions=True)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connection(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", far, limit=MIB)
        await server.serve_forever()

    asyncio.run(serve())


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, bytes_a_s: float) -> None:
    """Pass bytes on, each after the delay; what comes meanwhile is on its way, too."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def receive() -> None:
        due = 0.0
        with suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                due = max(time.monotonic() + delay_s, due + len(data) / bytes_a_s)
                await under_way.put((due, data))
        await under_way.put((0.0, b""))

    receiving = asyncio.create_task(receive())
    try:
        while (item := await under_way.get())[1]:
            await asyncio.sleep(max(item[0] - time.monotonic(), 0.0))
            writer.write(item[1])
            await writer.drain()
    finally:
        receiving.cancel()
        writer.close()


def store_tar(store: Store, uri: str, num_bytes: int) -> None:
    """A tar of members of 100 to 400 KB, of bytes that nobody compresses."""
    from tests.support.photos import tar_bytes

    choose = random.Random(0)
    members, total = [], 0
    while total < num_bytes:
        members.append((f"{len(members):06}.jpg", choose.randbytes(choose.randint(100_000, 400_000))))
        total += len(members[-1][1])
    fs = fsspec.filesystem("s3", **store.options)
    fs.mkdir(uri.removeprefix("s3://").partition("/")[0])
    fs.pipe_file(uri, tar_bytes(members))


def measure(
    uri: str, storage: Mapping[str, Any], variant: Mapping[str, Any] | None, decode_s: float, results: Any
) -> None:
    """In a process of its own: the seconds of reading a tar once, and how many MiB more that took at the peak."""
    import tatok.pipeline.readers.tar
    from tatok.pipeline.planning.plan import plan_shards
    from tatok.pipeline.storage.options import use_storage

    use_storage(storage)
    [shard] = plan_shards([uri])
    if variant is not None:
        fs, path = fsspec.core.url_to_fs(uri)
        tatok.pipeline.readers.tar.open_forward = lambda uri: fs.open(path, "rb", **variant)
    before, start = _peak_mib(), time.perf_counter()
    for _ in tatok.pipeline.readers.tar.read_tar(shard, max_sample_bytes=64 * MIB):
        time.sleep(decode_s)
    results.put((time.perf_counter() - start, _peak_mib() - before))


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def compare(
    uri: str, storage: Mapping[str, Any], variants: Mapping[str, Any], *, decode_s: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Of each variant: seconds, its ratios to the first one's of the same round, MiB at the peak."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks = dict.fromkeys(variants, 0.0)
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            results = spawn.SimpleQueue()
            process = spawn.Process(target=measure, args=(uri, storage, variants[name], decode_s, results))
            process.start()
            process.join()
            assert process.exitcode == 0, name
            took, peak = results.get()
            seconds[name].append(took)
            peaks[name] = max(peaks[name], peak)
    first = seconds[next(iter(variants))]
    figures = {}
    for name, each in seconds.items():
        ratios = [took / base for took, base in zip(each, first, strict=True)]
        figures[name] = {
            "seconds": [round(took, 2) for took in each],
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
            "peak_mib": round(peaks[name]),
        }
    return figures


def main(
    megabytes: int = 200,
    delay_ms: Annotated[list[float] | None, typer.Option(help="How late answers come; may be repeated.")] = None,
    decode_ms: Annotated[list[float] | None, typer.Option(help="How long a sample takes; may be repeated.")] = None,
    connection_mb_a_s: Annotated[float, typer.Option(help="What one connection gets.")] = 90.0,
    rounds: int = 5,
    variant: Annotated[list[str] | None, typer.Option(help="Some of them, beside fsspec's own.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures too.")] = None,
) -> None:
    """Read one tar through every variant, over and over."""
    chosen = {name: VARIANTS[name] for name in (OWN, *variant)} if variant else VARIANTS
    uri = "s3://read-ahead/photos.tar"
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tk-") as folder, seaweedfs(Path(folder), secret="s3cret") as store:
        store_tar(store, uri, megabytes * MB)
        port = int(store.endpoint_url.rpartition(":")[2])
        for delay in delay_ms or [0.0, 20.0]:
            with distant(port, delay_s=delay / 1e3, bytes_a_s=connection_mb_a_s * MB) as far:
                storage = {"s3": store.options | {"endpoint_url": f"http://127.0.0.1:{far}"}}
                for decode in decode_ms or [0.0, 5.0]:
                    figures = compare(uri, storage, chosen, decode_s=decode / 1e3, rounds=rounds)
                    found.append({"delay_ms": delay, "decode_ms": decode, "variants": figures})
                    print(_text(found[-1]), flush=True)
    if out is not None:
        report = {"megabytes": megabytes, "connection_mb_a_s": connection_mb_a_s, "found": found}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _text(found: Mapping[str, Any]) -> str:
    lines = [f"answers {found['delay_ms']:g} ms late, {found['decode_ms']:g} ms a sample"]
    for name, figures in found["variants"].items():
        low, high = figures["ratios"]
        seconds = statistics.median(figures["seconds"])
        ratio = f"{figures['ratio']:5.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"  {name:18} {ratio}  {seconds:6.2f} s  {figures['peak_mib']:4} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
