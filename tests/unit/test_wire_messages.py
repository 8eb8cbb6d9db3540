from __future__ import annotations

import pytest

from edgeml.wire import messages
from edgeml.wire.errors import LinkError
from edgeml.wire.messages import Desired, Report, Target


def test_desired_survives_the_wire() -> None:
    desired = Desired(7, (Target("kws", "1.2.0", "0" * 64, path="models/kws/1.2.0.edgeml", rollout="r1", wave=2),))
    assert messages.decode(Desired, messages.encode(desired)) == desired


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"\xff", b"{" * 5000, b'{"rev": 1}', b'{"rev": 1, "targets": [], "more": 1}', b" " * 70_000],
    ids=["empty", "list", "not-utf8", "deep", "missing", "extra", "long"],
)
def test_a_hostile_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(LinkError):
        messages.decode(Desired, payload)


def test_a_model_name_cannot_climb_out_of_a_folder() -> None:
    with pytest.raises(LinkError, match="matching regex"):
        messages.decode(Report, b'{"device":"d","session":1,"seq":1,"at":0,"rev":1,"model":"../x","state":"offered"}')


def test_a_topic_is_read_back() -> None:
    assert messages.parse_topic(messages.topic("acme", "cam-1", "report")) == ("acme", "cam-1", "report")
    assert messages.parse_topic("edgeml/v1/acme/d/cam-1/x/report") is None
