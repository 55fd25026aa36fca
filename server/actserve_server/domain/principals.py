"""Who calls: the tenant that a call is counted for, and what its role lets it do."""

from dataclasses import dataclass, field
from enum import StrEnum

from actserve_server.domain.errors import ActserveError, Reason


class Role(StrEnum):
    """What a caller may do. Each role may do all that the ones before it may."""

    READER = "reader"
    """Runs the model as it is: tokenizes, fetches, generates, explains."""
    EXPERIMENTER = "experimenter"
    """Also changes what the model computes, and what its tenant has on the server."""
    OPERATOR = "operator"
    """Also changes what every tenant sees."""

    @property
    def rank(self) -> int:
        return list(Role).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller. What is kept, set, cached or counted belongs to its tenant."""

    tenant: str
    """Empty on a server without tokens, where everybody is one tenant."""
    role: Role
    known_by: str = field(default="", compare=False)
    """What the caller is known by, such as the beginning of its token's hash, for the audit log."""

    @property
    def account(self) -> str:
        """See `account`."""
        return account(self.tenant)

    def require(self, role: Role, what: str) -> None:
        """Raises PERMISSION_DENIED unless the caller has that role or one that may do more.
        `what` begins a sentence, such as "changing activations"."""
        if self.role.rank < role.rank:
            raise ActserveError(
                Reason.PERMISSION_DENIED,
                f"{what} takes the role {role}, but this caller has the role {self.role}; use "
                "another token or certificate, or ask the server's operator for the role",
                metadata={"role": self.role, "required_role": role},
            )


def account(tenant: str) -> str:
    """The tenant that a token belongs to, whatever part of it a call is for. What is bounded for
    each tenant is bounded for this one, since whoever has a token may call for any part."""
    return tenant.partition("/")[0]


EVERYBODY = Principal(tenant="", role=Role.OPERATOR)
"""The caller of a server that asks for no token."""
