"""Rollouts over HTTP: make one, read its evidence, pause, resume, approve, abort, roll back."""

from __future__ import annotations

from typing import Final, get_args

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from edgeml.fleet.api.http import answer, read_json, require_operator
from edgeml.fleet.api.views import rollout_view
from edgeml.fleet.controller import foresee
from edgeml.fleet.plan import NewRollout, specify
from edgeml.fleet.rollout import Command, RolloutState, apply
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import events, versions
from edgeml.fleet.store.ledger import find_rollout, listed_rollouts, save_rollout
from edgeml.wire.errors import ServiceError

_UNDER_WAY: Final = frozenset({"draft", "running", "holding", "paused", "stopped", "rolling_back"})


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/rollouts")
    def rollouts(request: Request, model: str | None = None) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            states = listed_rollouts(connection)
            return answer([rollout_view(connection, state) for state in states if model in {None, state.spec.model}])

    @routes.post("/v1/rollouts")
    async def create(request: Request) -> Response:
        actor = require_operator(fleet, request)
        asked = await read_json(request, NewRollout)
        state = await run_in_threadpool(_create, fleet, asked, actor)
        forecast = await run_in_threadpool(foresee, fleet.ledger, state)
        with fleet.store.read() as connection:
            return answer(msgspec.to_builtins(rollout_view(connection, state)) | {"forecast": forecast}, 201)

    @routes.get("/v1/rollouts/{rollout}")
    def one(request: Request, rollout: str) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            return answer(rollout_view(connection, _found(find_rollout(connection, rollout), rollout)))

    @routes.post("/v1/rollouts/{rollout}/{command}")
    def command(request: Request, rollout: str, command: str) -> Response:
        actor = require_operator(fleet, request)
        chosen = next((known for known in get_args(Command) if known == command), None)
        if chosen is None:
            raise ServiceError(f"a rollout cannot {command!r}", status=404, hint=f"one of {', '.join(get_args(Command))}")
        with fleet.deciding, fleet.store.write() as connection:
            old = _found(find_rollout(connection, rollout), rollout)
            state = apply(old, chosen, actor, fleet.clock())
            save_rollout(connection, state)
            body = {"from": old.phase, "to": state.phase}
            events.append(connection, at=fleet.clock(), actor=actor, kind=chosen, subject=rollout, body=body)
            return answer(rollout_view(connection, state))

    return routes


def _create(fleet: Fleet, asked: NewRollout, actor: str) -> RolloutState:
    now = fleet.clock()
    with fleet.deciding, fleet.store.write() as connection:
        version = versions.find(connection, asked.model, asked.version)
        if version is None or version.state != "published":
            known = [row.version for row in versions.listed(connection, asked.model)]
            hint = f"published: {', '.join(known)}" if known else "publish it with `edgeml fleet publish BUNDLE`"
            raise ServiceError(f"{asked.model}@{asked.version} is not published", status=404, hint=hint)
        other = next((old for old in listed_rollouts(connection) if _is_in_the_way(old, asked.model)), None)
        if other is not None:
            raise ServiceError(
                f"rollout {other.spec.id!r} of {asked.model!r} is {other.phase}",
                status=409,
                hint="finish, abort or roll it back first",
            )
        spec = specify(asked, version, now, actor)
        state = apply(RolloutState(spec), "start", actor, now)
        save_rollout(connection, state)
        events.append(connection, at=now, actor=actor, kind="rollout created", subject=spec.id, body=msgspec.to_builtins(spec))
        return state


def _is_in_the_way(state: RolloutState, model: str) -> bool:
    return state.spec.model == model and state.phase in _UNDER_WAY


def _found(state: RolloutState | None, rollout: str) -> RolloutState:
    if state is None:
        raise ServiceError(f"there is no rollout {rollout!r}", status=404, hint="see `edgeml fleet rollout status`")
    return state
