#!/usr/bin/env python3
"""Start several processes of one training run on this machine, each with CPU devices of its own: to try what a cluster does.

    launch/local_processes.py --processes 2 --devices 4 dim train --config configs/edit_stage2.py --workdir runs/two --set sharding.fsdp=-1

They write to this terminal. SIGTERM and Ctrl-C go to all of them. Where one fails, the others have ten seconds to end by themselves. The
exit code is that of the first one that failed, else 0. `--dry-run` shows the commands and runs nothing.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

GRACE = 10.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=_positive, default=2, metavar="N")
    parser.add_argument("--devices", type=_positive, default=1, metavar="D", help="of each process")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as: dim train --config ... --workdir ...")
    args = parser.parse_args()
    if not args.command:
        parser.error("name the command to run, such as: dim train --config configs/nano_autoencoder.py --workdir runs/two")
    port = _free_port()
    environments = [_environment(number, args.processes, args.devices, port) for number in range(args.processes)]
    for environment in environments:
        print(
            *(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(args.command), file=sys.stderr, flush=True
        )
    return 0 if args.dry_run else _run([(args.command, os.environ | environment) for environment in environments])


def _environment(number: int, processes: int, devices: int, port: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
    }  # fmt: skip


def _run(commands: list[tuple[list[str], dict[str, str]]]) -> int:
    running: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code, deadline = 0, float("inf")
    try:
        for command, environment in commands:
            # Of its own session, or Ctrl-C would reach it twice.
            running.append(subprocess.Popen(command, env=environment, start_new_session=True))
        while None in (codes := [process.poll() for process in running]) and time.monotonic() < deadline:
            time.sleep(0.1)
            if not code and (code := next((ended for ended in codes if ended), 0)):
                deadline = time.monotonic() + GRACE
    finally:
        for process in running:
            process.kill()
            process.wait()
    code = code or next((process.returncode for process in running if process.returncode), 0)
    return code if code >= 0 else 128 - code  # as shells say that a signal ended it


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: write a number from 1 on")
    return int(text)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
