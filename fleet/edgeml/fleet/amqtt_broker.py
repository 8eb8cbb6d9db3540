"""amqtt inside the service, on loopback: lets a machine without Mosquitto try edgeml out.

It speaks MQTT 3.1.1 only and forgets everything when the service stops. Four of its gaps are closed here: a last will is
checked, a client id must be the user name, a session gets the retained messages of its own subscriptions alone, and a client is
known before anything of an existing session is touched.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError, BrokerError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from edgeml.fleet.broker import Address, free_port, refuse_taken_port, service_address
from edgeml.fleet.devices import SERVICE_USER, password_fits, password_hash
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.messages import parse_topic

HOST: Final = "127.0.0.1"
START_LIMIT_S: Final = 10.0
log = logging.getLogger(__name__)


class Rules:
    """Who may connect, and what a user may publish and read."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.passwords: Mapping[str, str] = {}

    def admit(self, session: Session) -> bool:
        stored = self.passwords.get(session.username or "")
        if stored is None or session.client_id != session.username or not password_fits(session.password or "", stored):
            return False
        return not session.will_flag or self.may_publish(session.username, session.will_topic or "")

    def may_publish(self, user: str, topic: str) -> bool:
        return user == SERVICE_USER or self._owns(user, topic, {"report", "telemetry", "state"})

    def may_read(self, user: str, topic: str) -> bool:
        """Also for a filter: one with a wildcard is no topic of a device, so only the service may use it."""
        return user == SERVICE_USER or self._owns(user, topic, {"desired"})

    def _owns(self, user: str, topic: str, kinds: set[str]) -> bool:
        parts = parse_topic(topic)
        return parts is not None and parts[:2] == (self.tenant, user) and parts[2] in kinds


class Password(BaseAuthPlugin):  # type: ignore[misc]
    """Asks the rules; amqtt makes the instance from `Config`."""

    @dataclass
    class Config:
        """As amqtt wants it."""

        rules: Any = field(default=None)

    async def authenticate(self, *, session: Session) -> bool:
        return bool(self.config.rules.admit(session))


class Topics(BaseTopicPlugin):  # type: ignore[misc]
    """Asks the rules for every subscription, publication and delivery."""

    @dataclass
    class Config:
        """As amqtt wants it."""

        rules: Any = field(default=None)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        user, rules = (session.username if session else None) or "", self.config.rules
        if action == Action.PUBLISH:
            return bool(rules.may_publish(user, topic or ""))
        return bool(rules.may_read(user, topic or ""))


class _Guarded(Broker):  # type: ignore[misc]
    """The broker with its gaps closed."""

    rules: Rules

    async def _initialize_client_session(self, reader: Any, writer: Any, remote_address: str, remote_port: int) -> Any:
        del remote_address, remote_port
        handler, session = await BrokerProtocolHandler.init_from_connect(reader, writer, self.plugins_manager)
        if not self.rules.admit(session):
            # The original deletes or changes the session of that client id first, and asks for the password later.
            handler.attach(session, reader, writer)
            await handler.mqtt_connack_authorize(False)  # noqa: FBT003 - amqtt's own signature
            await writer.close()
            raise AMQTTError("refused: wrong password, client id or last will")
        old = self._sessions.get(session.client_id, (None, None))[0]
        if session.clean_session:
            await self._delete_session(session.client_id)
            session.parent = 0
        elif old is not None:
            for name in ("will_flag", "will_message", "will_topic", "will_qos", "will_retain", "keep_alive", "password"):
                setattr(old, name, getattr(session, name))
            session, session.parent = old, 1
        else:
            session.parent = 0
        return handler, session

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: Session) -> None:
        # On reconnect the original comes here with every filter of every client.
        holders = self._subscriptions.get(subscription[0], [])
        if any(holder.client_id == session.client_id for holder, _ in holders):
            await super()._publish_retained_messages_for_subscription(subscription, session)


class Amqtt:
    """The broker in a thread with a loop of its own. `port` 0 takes a free one."""

    name = "amqtt"

    def __init__(self, port: int, tenant: str) -> None:
        self._rules = Rules(tenant)
        self._password = secrets.token_urlsafe(24)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._broker: _Guarded | None = None
        self.address: Address = service_address(HOST, port or free_port(HOST), self._password)

    def start(self, passwords: Mapping[str, str]) -> None:
        log.warning("mosquitto is not installed: using amqtt, which is for trying out (loopback only, forgets at every stop)")
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.ERROR)
        refuse_taken_port(HOST, self.address.port)
        self.admit(passwords)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="amqtt", daemon=True)
        self._thread.start()
        try:
            self._call(self._start())
        except BrokerError as error:
            self.stop()
            raise EnvironmentProblem(f"the broker cannot start: {error}", hint="give another port with --mqtt-port") from error

    def admit(self, passwords: Mapping[str, str]) -> None:
        self._rules.passwords = {**passwords, SERVICE_USER: password_hash(self._password)}

    def check(self) -> bool:
        return False  # it lives and dies with this process

    def stop(self) -> None:
        if self._loop is None or self._thread is None:
            return
        if self._broker is not None:
            self._call(self._broker.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_LIMIT_S)
        self._loop.close()
        self._loop = self._thread = self._broker = None

    async def _start(self) -> None:
        own = {"rules": self._rules}
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{self.address.port}"}},
            "plugins": {f"{__name__}.Password": own, f"{__name__}.Topics": own},
        }
        broker = _Guarded(config)
        broker.rules = self._rules
        await broker.start()
        self._broker = broker

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_LIMIT_S)
