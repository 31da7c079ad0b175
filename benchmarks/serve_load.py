"""Load a server of examples/serve.py: requests per second, latencies, memory of its process.

python examples/serve.py --model tiny --port 8000
python benchmarks/serve_load.py --photo examples/street.jpg --url http://127.0.0.1:8000

Without --url, the script starts the server itself on a free port. The memory is read on Linux only.
"""

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

SERVER = Path(__file__).resolve().parents[1] / "examples" / "serve.py"


def encode(photo: str, side: int) -> bytes:
    """Return a photo as JPEG whose longer side has a number of pixels."""
    buffer = io.BytesIO()
    with Image.open(photo) as image:
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.convert("RGB").resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """Start the server on a free port and return its process and URL."""
    command = [sys.executable, str(SERVER), "--port", "0", "--model", args.model]
    command += ["--threads", str(args.threads)]
    if args.input_size is not None:
        command += ["--input-size", str(args.input_size)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if match := re.search(r"http://[\d.]+:\d+", line):
            return process, match[0]
    raise SystemExit("The server did not start.")


def resident_mib(pid: int | None) -> float:
    """Return the resident memory of a process, NaN if there is no process or no Linux."""
    statm = Path(f"/proc/{pid}/statm")
    if pid is None or not statm.exists():
        return float("nan")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def load(url: str, body: bytes, args: argparse.Namespace, pid: int | None) -> dict:
    """Send requests from several clients, each of which waits for its answer, and return the figures."""
    latencies: list[float] = []
    memory: list[tuple[int, float]] = []
    failures: dict[int, int] = {}
    remaining = iter(range(args.requests))
    first = 0.0
    address = f"{url}/predict?min_score={args.min_score}"

    async def run_client(client: httpx.AsyncClient) -> None:
        for number in remaining:
            start = time.perf_counter()
            if args.seconds is not None and start > first + args.seconds:
                return
            answer = await client.post(address, content=body)
            if answer.status_code != 200:
                failures[answer.status_code] = failures.get(answer.status_code, 0) + 1
            latencies.append(time.perf_counter() - start)
            if number % 20 == 0:
                memory.append((number, resident_mib(pid)))
                print(f"{number} requests", end="\r", file=sys.stderr, flush=True)

    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        for _ in range(3):  # warm-up
            (await client.post(address, content=body)).raise_for_status()
        first = time.perf_counter()
        await asyncio.gather(*(run_client(client) for _ in range(args.clients)))
        seconds = time.perf_counter() - first
    p50, p90, p99 = (1000 * float(value) for value in np.percentile(latencies, (50, 90, 99)))
    settled = [entry for entry in memory if entry[0] >= len(latencies) // 5]
    slope = float(np.polyfit(*zip(*settled, strict=True), 1)[0]) * 1000 if len(settled) > 1 else float("nan")
    return {
        "requests": len(latencies),
        "clients": args.clients,
        "failures": failures,
        "requests_per_second": round(len(latencies) / seconds, 2),
        "latency_ms": {"p50": round(p50, 1), "p90": round(p90, 1), "p99": round(p99, 1)},
        "memory_mib": {
            "first": round(memory[0][1], 1),
            "last": round(memory[-1][1], 1),
            "greatest": round(max(value for _, value in memory), 1),
            "slope_per_1000_requests": round(slope, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="server to load (default: one that the script starts)")
    parser.add_argument("--pid", type=int, help="process of the server at --url, whose memory is read")
    parser.add_argument("--photo", required=True)
    parser.add_argument("--side", type=int, default=256, help="longer side of the photo in pixels")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--input-size", type=int, help="of the network (default: the model's)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the server")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--min-score", type=float, default=0.3, help="of the requests (default: 0.3)")
    parser.add_argument("--seconds", type=float, help="end earlier, after this time")
    parser.add_argument("--clients", type=int, default=4)
    args = parser.parse_args()
    process, url = (None, args.url) if args.url else start_server(args)
    pid = args.pid if process is None else process.pid
    body = encode(args.photo, args.side)
    try:
        figures = asyncio.run(load(url, body, args, pid))
    finally:
        if process is not None:
            process.terminate()
            process.wait()
    settings = {name: getattr(args, name) for name in ("model", "input_size", "side", "threads")}
    print(json.dumps({**settings, **figures}, indent=2))


if __name__ == "__main__":
    main()
