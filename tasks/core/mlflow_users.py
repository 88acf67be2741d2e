"""MLflow's users and what they were granted, where its server was started with `--app-name basic-auth`.

A grant is a user's right on one registered model (by name), one experiment (by id), or all of a kind (`*`). Who makes
a model or an experiment may manage it. Without a grant a user sees nothing of either (`default_permission =
NO_PERMISSIONS`), in searches as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.core.errors import ConfigError, LoginRefused, NotFound, PenstockError
from tasks.core.mlflow_login import SERVICE_USER, Login, admin_refused, tenant_user
from tasks.core.mlflow_rest import AlreadyExists, MlflowRest, NoLogins

EXPERIMENT, MODEL = "experiment", "registered_model"
MANAGE = "MANAGE"
_SEARCH_PAGE = 1000
_OWN_ROLE = re.compile(r"__user_\d+__")
"""Of the role that MLflow keeps what was granted to one user in."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Grant:
    """What a user may do to a resource."""

    user: str
    kind: str
    """`EXPERIMENT`, `MODEL`, or another kind of MLflow's."""
    resource: str
    """An experiment's id, a model's name, or `*`."""
    permission: str = MANAGE


@dataclass(frozen=True)
class Held:
    """What a user has."""

    grants: frozenset[Grant]
    """Granted to it alone."""
    roles: frozenset[str]
    """Roles of MLflow's that it was assigned, which grant what they grant."""
    is_admin: bool = False
    """An admin may do everything, whatever was granted."""


@dataclass(frozen=True)
class Resource:
    """An experiment or a registered model."""

    kind: str
    resource: str
    """As a grant names it."""
    name: str


SERVICE_GRANTS = frozenset(
    {
        Grant(SERVICE_USER, EXPERIMENT, "*", "EDIT"),
        Grant(SERVICE_USER, "run", "*", MANAGE),  # a run that was not finished is deleted by the next attempt
        Grant(SERVICE_USER, MODEL, "*", MANAGE),  # nothing less deletes an alias
    }
)
"""What Penstock's own programs need: of users, nothing."""


class MlflowUsers(MlflowRest):
    """The users of one MLflow server, as its admin sees them.

    Raises:
        ConfigError: The login is refused, is not an admin's, or this MLflow has no users.
        ServiceUnavailable: MLflow does not answer.
    """

    def __init__(self, url: str, admin: Login) -> None:
        super().__init__(url, login=admin, refused=admin_refused)
        if not self.call("GET", "users/current")["user"]["is_admin"]:
            raise ConfigError(
                "is not an admin of MLflow's, and makes no users",
                which=f"{self.public_url}: {self.user}",
                fix="take the login of its admin",
            )

    def ensure(self, user: str, password: str) -> bool:
        """Make the user; False where there is one of this name, whatever its password."""
        try:
            self.call("POST", "users/create", json={"username": user, "password": password})
        except AlreadyExists:
            return False
        return True

    def make_no_admin(self, user: str) -> None:
        self.call("PATCH", "users/update-admin", json={"username": user, "is_admin": False})

    def set_password(self, user: str, password: str) -> None:
        self.call("PATCH", "users/update-password", json={"username": user, "password": password})

    def held_by(self, user: str) -> Held | None:
        """What was granted to the user, by somebody or for having made it; None when there is no such user."""
        try:
            return _held(
                user, self.call("GET", "users/permissions/list", version="3.0", params={"username": user})
            )
        except NotFound:
            return None

    def grant(self, grant: Grant) -> None:
        """Nothing happens when the user has one on the resource: `revoke` that first to change it."""
        _grant(self, grant)

    def revoke(self, grant: Grant) -> None:
        """Nothing happens when the user does not have it."""
        body = {"username": grant.user, "resource_type": grant.kind, "resource_id": grant.resource}
        try:
            self.call("POST", "users/permissions/revoke", version="3.0", json=body)
        except NotFound:
            return

    def resources(self) -> list[Resource]:
        """Every registered model and every experiment, deleted ones too: those can be restored."""
        found: list[Resource] = []
        page = ""
        while True:
            asked = {"max_results": _SEARCH_PAGE, **({"page_token": page} if page else {})}
            answer = self.call("GET", "registered-models/search", params=asked)
            found += [
                Resource(MODEL, item["name"], item["name"]) for item in answer.get("registered_models", [])
            ]
            if not (page := answer.get("next_page_token", "")):
                break
        while True:
            asked = {"max_results": _SEARCH_PAGE, **({"page_token": page} if page else {})}
            answer = self.call("POST", "experiments/search", json={**asked, "view_type": "ALL"})
            found += [
                Resource(EXPERIMENT, item["experiment_id"], item["name"])
                for item in answer.get("experiments", [])
            ]
            if not (page := answer.get("next_page_token", "")):
                return found


def lets_in(url: str, login: Login) -> bool:
    """Whether MLflow takes this user's password.

    Raises:
        ConfigError: This MLflow has no users.
        ServiceUnavailable: It does not answer.
    """
    return _held_by(url, login) is not None


def ensure_service_user(url: str, *, admin: Login, password: str) -> bool:
    """Make the user of Penstock's own programs what it has to be; whether anything had to be done.

    Its password is the one given, whatever it was. The admin is asked for only when something is missing.

    Raises:
        ConfigError: The admin's login is refused, or this MLflow has no users.
        ServiceUnavailable: MLflow does not answer.
    """
    held = _held_by(url, (SERVICE_USER, password))
    if held is not None and held.grants >= SERVICE_GRANTS and not held.is_admin:
        return False
    with MlflowUsers(url, admin) as users:
        if held is None and not users.ensure(SERVICE_USER, password):
            users.set_password(SERVICE_USER, password)
        held = users.held_by(SERVICE_USER)
        assert held is not None, "made above"
        if held.is_admin:
            users.make_no_admin(SERVICE_USER)
        for grant in sorted(SERVICE_GRANTS - held.grants):
            users.revoke(grant)  # another permission on the same would stay
            users.grant(grant)
    return True


def hand_to_tenant(made_by: MlflowRest, tenant: str, kind: str, resource: str) -> None:
    """Let the tenant's user, where there is one, manage what this program has made for one of its pipelines.

    What cannot be handed over now is by the next `penstock tenancy mlflow`: work does not end for it.
    """
    user = tenant_user(tenant)
    if made_by.user in (None, user):  # MLflow asks for no login, or the tenant's user has made it itself
        return
    try:
        _grant(made_by, Grant(user, kind, resource))
    except (NotFound, NoLogins):  # the tenant has no user, or this MLflow has none at all
        return
    except PenstockError as error:
        _log.warning(
            "%s cannot see %s %s until `penstock tenancy mlflow`: %s", user, kind, resource, error.what
        )


def _grant(rest: MlflowRest, grant: Grant) -> None:
    body = {
        "username": grant.user,
        "resource_type": grant.kind,
        "resource_id": grant.resource,
        "permission": grant.permission,
    }
    try:
        rest.call("POST", "users/permissions/grant", version="3.0", json=body)
    except AlreadyExists:
        return


def _held_by(url: str, login: Login) -> Held | None:
    """None where the login is refused."""
    with MlflowRest(url, login=login) as rest:
        try:
            return _held(login[0], rest.call("GET", "users/current/permissions", version="3.0"))
        except LoginRefused:
            return None


def _held(user: str, answer: Mapping[str, Any]) -> Held:
    own = [item for item in answer["permissions"] if _OWN_ROLE.fullmatch(item["role_name"])]
    return Held(
        frozenset(
            Grant(user, item["resource_type"], item["resource_pattern"], item["permission"]) for item in own
        ),
        frozenset(item["role_name"] for item in answer["permissions"] if item not in own),
        bool(answer["is_admin"]),
    )
