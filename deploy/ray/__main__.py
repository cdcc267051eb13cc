"""`python -m deploy.ray`: Presage on a Ray of its own on this machine, until SIGTERM. Clusters use serve.yaml."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading

from server import config as reading
from server.config import SettingsError

GRPC_PORT, HTTP_PORT = 50051, 8080


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray", description=__doc__)
    parser.add_argument("--model", default="arm", help="a package's name or folder")
    parser.add_argument("--device", default="auto", help="of each replica: cpu, cuda or auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of an engine; 0 leaves it to torch")
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=1)
    parser.add_argument("--calls-per-replica", type=float, default=8.0, help="before another one is started")
    parser.add_argument("--upscale-delay-s", type=float, default=5.0)
    parser.add_argument("--num-cpus", type=int, help="that Ray may give away; default: those of the machine")
    parser.add_argument("--num-gpus", type=float, default=0.0, help="of each replica")
    parser.add_argument("--grpc-port", type=int, default=GRPC_PORT)
    parser.add_argument("--http-port", type=int, default=HTTP_PORT)
    chosen = parser.parse_args()
    flags = {"models": (chosen.model,), "devices": (chosen.device,), "engine_threads": chosen.threads}
    try:
        settings = reading.load(flags=flags)
        if not (settings.is_guarded or settings.insecure_public or _only_loopback()):
            raise SettingsError(
                "Ray's gRPC proxy listens on every address of the machine: api_keys or api_keys_file must be set, or "
                "insecure_public; or run it in a network namespace that has loopback alone"
            )
    except SettingsError as error:
        print(f"presage: {error}", file=sys.stderr)
        return 2
    serve_until_stopped(chosen, settings)
    return 0


def serve_until_stopped(chosen: argparse.Namespace, settings: reading.Settings) -> None:
    """Start Ray and the service, print where it listens as a line of JSON, wait for a signal, end both."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported
    import ray
    from deploy.ray.application import Scale, deployment
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    asked = {name: value for name, value in vars(chosen).items() if name in Scale.model_fields and name != "num_cpus"}
    scale = Scale(**asked)  # `num_cpus` is of the whole machine there
    ray.init(
        address="local",
        num_cpus=chosen.num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # now: ray.init sets handlers of its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=chosen.http_port),
            grpc_options=gRPCOptions(
                port=chosen.grpc_port,
                grpc_servicer_functions=["deploy.ray.wire.add_services"],
                enable_reflection=settings.reflection,
            ),
        )
        serve.run(deployment(settings, scale), name="presage", route_prefix="/")
        told = {"grpc": f"127.0.0.1:{chosen.grpc_port}", "rest": f"http://127.0.0.1:{chosen.http_port}"}
        print(json.dumps(told), flush=True)
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _only_loopback() -> bool:
    """Whether nothing but this machine itself can reach its addresses."""
    return {name for _, name in socket.if_nameindex()} <= {"lo"}


if __name__ == "__main__":
    sys.exit(main())
