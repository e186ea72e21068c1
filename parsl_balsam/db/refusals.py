"""What it means that a database could not be used: whether nobody can use it, whether waiting helps, what to do."""

from __future__ import annotations

import re

from sqlalchemy import URL

from parsl_balsam.model.errors import DatabaseDenied, DatabaseDown, DatabaseUnavailable

#: How libpq and the server say that nobody at all can use the database now. The end of one connection does not: others
#: may still be served.
_DOWN_SIGNS = (
    "Connection refused",
    "the database system is starting up",
    "the database system is shutting down",
)

#: How libpq tells of each address of a server that it has tried.
_TRIED = ("connection to server", "could not connect to server")

#: How they say that the URL is wrong, which no waiting cures.
_DENIED_SIGNS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied for database",
    "certificate verify failed",
    "server does not support SSL",
)
_NO_SUCH_DATABASE = re.compile(r'(database|role) ".*" does not exist')

#: How a pooler says that it does not let clients set what `parsl_balsam.db.postgres` sets.
_POOLER_SIGN = "unsupported startup parameter: options"
_POOLER_ADVICE = (
    "a pooler is before the server. Give the URL of the server itself, or have the pooler configured with "
    "'ignore_startup_parameters = options' and 'pool_mode = session'"
)


def unavailable(url: URL, reason: str) -> DatabaseUnavailable:
    """Return the error that says why the database at a URL cannot be used."""
    told = f"{url.render_as_string()}: {reason}"
    # A name may have several addresses. If one of them refuses and another is silent, somebody else may be served.
    tries = [line for line in reason.splitlines() if line.startswith(_TRIED)] or [reason]
    if all(any(sign in line for sign in _DOWN_SIGNS) for line in tries):
        return DatabaseDown(told)
    if _POOLER_SIGN in reason:
        return DatabaseDenied(f"{told}: {_POOLER_ADVICE}")
    if any(sign in reason for sign in _DENIED_SIGNS) or _NO_SUCH_DATABASE.search(reason):
        return DatabaseDenied(told)
    return DatabaseUnavailable(told)
