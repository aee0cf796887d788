"""Certificates for a cluster of the engine's own: made for the occasion, known to its workers alone."""

from __future__ import annotations

from typing import Any

from distributed.security import Security

from asyncflow.errors import InvalidOptionError


def secured(asked: Any) -> Security | None:
    """What `security=` stands for; True makes a certificate that nothing else has."""
    if asked is None or asked is False:
        return None
    if isinstance(asked, Security):
        return asked
    if asked is not True:
        raise InvalidOptionError("security", asked, "True, or a distributed.Security")
    try:
        made: Security = Security.temporary()
    except ImportError as error:
        raise InvalidOptionError("security", asked, "possible where `pip install cryptography` was done") from error
    return made


def variables_of(security: Any) -> dict[str, str]:
    """The environment in which a worker joins a cluster with this security. Only its owner can read it."""
    if security is None:
        return {}
    name = "DASK_DISTRIBUTED__COMM__"
    found = {
        "TLS__CA_FILE": security.tls_ca_file,
        "TLS__WORKER__CERT": security.tls_worker_cert,
        "TLS__WORKER__KEY": security.tls_worker_key,
    }
    variables = {name + key: str(value) for key, value in found.items() if value}
    return {**variables, name + "REQUIRE_ENCRYPTION": "true"}
