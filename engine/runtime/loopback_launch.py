"""`accelerate launch` for a step of several processes on one machine, which no other machine can connect to.

The launcher of torch keeps the addresses of its processes in a store that listens on every network interface, whatever
address it is given, and anyone who reaches its port can write to it. Here the store gets a socket that is bound to the
loopback interface; the processes talk to each other there too (see the environment of a step). Takes the arguments of
`accelerate launch`:

    python -m engine.runtime.loopback_launch --config_file accelerate.yaml stages/sft.py --config config.yaml
"""

import datetime
import socket

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous


def loopback_store(
    address: str, port: int, world_size: int, is_master: bool, timeout: datetime.timedelta, *, multi_tenant: bool
) -> TCPStore:
    """What torch's launcher calls in place of TCPStore: the server listens on 127.0.0.1 only."""
    if not is_master:
        return TCPStore(address, port, world_size, False, timeout, multi_tenant=multi_tenant)
    listening = socket.socket()
    listening.bind(("127.0.0.1", port))
    listening.listen(socket.SOMAXCONN)
    # The store closes the descriptor.
    return TCPStore(
        "127.0.0.1",
        port,
        world_size,
        True,
        timeout,
        multi_tenant=multi_tenant,
        master_listen_fd=listening.detach(),
    )


def main() -> None:
    static_tcp_rendezvous.TCPStore = loopback_store  # pyright: ignore[reportAttributeAccessIssue]
    launch_command(launch_command_parser().parse_args())


if __name__ == "__main__":
    main()
