"""Servers of other kinds, on a free port of this machine: they say fixed bytes, whatever they are asked."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HTTP_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue"


@contextmanager
def answering(*answers: bytes | Path) -> Iterator[int]:
    """Answer each connection with these bytes, one after each message; a path is a certificate to answer with."""
    certificates = [answer for answer in answers if isinstance(answer, Path)]
    said = [answer for answer in answers if isinstance(answer, bytes)]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            with suppress(ssl.SSLError, ConnectionError):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                for certificate in certificates:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(certificate)
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    for answer in said:
                        connection.recv(65536)
                        connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def private_certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 that no authority knows, with its key, and return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a laboratory")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "private.pem"
    path.write_bytes(written + certificate.public_bytes(pem))
    return path
