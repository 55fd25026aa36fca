"""What features stand for, as each tenant has it: also of dictionaries of the server."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.storage.database import Database
from actserve_server.storage.tables import dictionary_label_versions as versions
from actserve_server.storage.tables import dictionary_labels as labels

MAX_LABELS = 1_000_000
"""Of one tenant, over all dictionaries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLabel:
    """What one feature stands for."""

    feature: int
    label: str
    """Empty for none."""
    source: str = ""
    """Who says so."""


class FeatureLabels:
    """The labels of the dictionaries of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(self, database: Database, model_id: str) -> None:
        self._database = database
        self._model_id = model_id

    async def version(self, tenant: str, dictionary: str) -> str:
        """Changes whenever a label does; empty before there was any."""
        return (await self.versions(tenant, [dictionary])).get(dictionary, "")

    async def versions(self, tenant: str, ids: Collection[str]) -> Mapping[str, str]:
        """Of each dictionary that has one."""
        if not ids:
            return {}
        select = sa.select(versions.c.dictionary, versions.c.version).where(
            versions.c.tenant == tenant,
            versions.c.model_id == self._model_id,
            versions.c.dictionary.in_(ids),
        )
        found = await self._database.read(lambda connection: connection.execute(select).all())
        return {each.dictionary: each.version for each in found}

    async def set(self, tenant: str, dictionary: str, given: Sequence[FeatureLabel]) -> str:
        """Replaces the labels of these features, and returns the new version. Raises
        STORE_QUOTA_EXCEEDED, and then replaces none."""
        version = secrets.token_hex(4)

        def write(connection: sa.Connection) -> str:
            here = (
                (labels.c.tenant == tenant)
                & (labels.c.model_id == self._model_id)
                & (labels.c.dictionary == dictionary)
            )
            features = [each.feature for each in given]
            connection.execute(labels.delete().where(here, labels.c.feature.in_(features)))
            if new := [each for each in given if each.label]:
                count = sa.select(sa.func.count()).where(labels.c.account == account(tenant))
                stored = int(connection.execute(count).scalar_one())
                if stored + len(new) > MAX_LABELS:
                    raise ActserveError(
                        Reason.STORE_QUOTA_EXCEEDED,
                        f"{stored} labels are stored, and at most {MAX_LABELS} may be; take some "
                        "away",
                        metadata={"limit": MAX_LABELS},
                    )
                connection.execute(
                    labels.insert(),
                    [
                        {
                            "tenant": tenant,
                            "model_id": self._model_id,
                            "dictionary": dictionary,
                            "feature": each.feature,
                            "account": account(tenant),
                            "label": each.label,
                            "source": each.source,
                        }
                        for each in new
                    ],
                )
            self._forget_version(connection, tenant, dictionary)
            connection.execute(
                versions.insert(),
                {
                    "tenant": tenant,
                    "model_id": self._model_id,
                    "dictionary": dictionary,
                    "version": version,
                },
            )
            return version

        return await self._database.write(write)

    async def list(
        self, tenant: str, dictionary: str, after: int, count: int, text: str
    ) -> Sequence[FeatureLabel]:
        """The first labels by feature that come after this one and hold the text, in any case."""
        select = sa.select(labels).where(
            labels.c.tenant == tenant,
            labels.c.model_id == self._model_id,
            labels.c.dictionary == dictionary,
            labels.c.feature > after,
        )
        if text:
            select = select.where(labels.c.label.icontains(text, autoescape=True))
        select = select.order_by(labels.c.feature).limit(count)
        found = await self._database.read(lambda connection: connection.execute(select).all())
        return [
            FeatureLabel(feature=each.feature, label=each.label, source=each.source)
            for each in found
        ]

    async def forget(self, tenant: str, dictionary: str) -> None:
        """Deletes all labels of a dictionary."""

        def write(connection: sa.Connection) -> None:
            connection.execute(
                labels.delete().where(
                    labels.c.tenant == tenant,
                    labels.c.model_id == self._model_id,
                    labels.c.dictionary == dictionary,
                )
            )
            self._forget_version(connection, tenant, dictionary)

        await self._database.write(write)

    def _forget_version(self, connection: sa.Connection, tenant: str, dictionary: str) -> None:
        connection.execute(
            versions.delete().where(
                versions.c.tenant == tenant,
                versions.c.model_id == self._model_id,
                versions.c.dictionary == dictionary,
            )
        )
