"""Whether a broker answers at a port."""

import socket

from utils.broker import (
    Broker,
    free_port,
    is_answering,
)


def test_running_broker_answers(broker: Broker) -> None:
    assert is_answering(broker.bootstrap)
    assert is_answering(f"127.0.0.1:{free_port()},{broker.bootstrap}")


def test_closed_and_silent_ports_do_not_answer() -> None:
    assert not is_answering(f"127.0.0.1:{free_port()}", timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_answering(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)
