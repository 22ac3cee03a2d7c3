"""Servers that cannot be reached, connections that break, places that cannot be written, and signals: through the command."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dim_jax.designer.limits import Limits
from dim_jax.designer.responses import ResponseError, read_completion
from tests.chat_server import ChatServer, Turnstile, good, hang, status
from tests.local_server import free_port
from tests.painter_fixtures import dim, one_error
from tests.test_designer_responses import FAILURES, _place, chat, design, one  # noqa: F401 (_place is a fixture)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Only names of this machine are known: a resolver without a network may look for others for a quarter of a minute."""
    look_up = socket.getaddrinfo

    def known(host, *arguments, **options):
        if host not in ("localhost", b"localhost", "127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)


def certificate(file: Path, host: str, days: int) -> Path:
    """A self-signed one with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=9), now + timedelta(days=days))
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.mark.parametrize(
    ("host", "days", "trusted", "said"),
    [
        ("localhost", 9, False, "self-signed certificate"), ("localhost", -1, True, "has expired"),
        ("elsewhere", 9, True, "not valid for 'localhost'"), ("localhost", 9, True, ""),
    ],
)  # fmt: skip
def test_certificates(host, days, trusted, said, monkeypatch):
    file = certificate(Path("server.pem"), host, days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ChatServer(good())
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    monkeypatch.setattr(server._server, "handle_error", lambda *_: None)
    with server:
        code, text = design(server.url.replace("http://127.0.0.1", "https://localhost"))
    assert (code, text.count("\n")) == (1 if said else 0, 1)
    assert said in text
    assert ("SSL_CERT_FILE" in text) == bool(said)


def test_https_url_of_http_server():
    with ChatServer() as server:
        assert "does not speak TLS. Write http://" in one_error(design(server.url.replace("http://", "https://")))


@pytest.mark.parametrize("command", [design, one])
def test_unreachable_server_is_one_error(command, monkeypatch):
    """One line, and nothing that a second run would skip."""
    monkeypatch.setattr(Limits, "backoff_seconds", lambda limits, tries: 0.01 * tries)
    message = one_error(command(f"http://127.0.0.1:{free_port()}/v1", *(("--tries", "1") if command is design else ())))
    assert "nothing listens there. Start the server, or check --base-url" in message
    assert "its name is not known" in one_error(design("http://no-such-host.invalid/v1", "--tries", "1"))
    assert not FAILURES.exists()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://x/v1", "http://[::1", "http://x:99999/v1", "https://", "http://a b/v1", "http://a..b/v1", "http://☃/v1"],
)
def test_invalid_base_urls_are_refused(url):
    assert "--base-url" in one_error(design(url))


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PROXY", "foo://x:1"), ("SSL_CERT_FILE", "/nonexistent"), ("VLLM_API_KEY", "sk-\n"), ("VLLM_API_KEY", "é")]
)
def test_proxy_and_certificate_variables(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert name in one_error(design("http://localhost:1/v1"))


# Places and signals


def test_unwritable_home_names_journal_variable(monkeypatch):
    """Told before anything is paid for."""
    monkeypatch.delenv("DIM_BLUEPRINTS")
    monkeypatch.setenv("HOME", "/dev/null")
    with ChatServer() as server:
        assert "/dev/null/.cache/dim_jax/blueprints.jsonl: answers are kept there" in one_error(one(server))
        monkeypatch.setenv("DIM_BLUEPRINTS", "in.png/kept.jsonl")
        assert "DIM_BLUEPRINTS=FILE.jsonl" in one_error(one(server))
        assert not server.requests
        assert "2 answered" in design(server)[1]


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_one_line_and_keeps_answers(number, many):
    """The first answers are there, the next question waits long for its turn."""
    later = status(429, "slow down", headers={"Retry-After": "1.9"})
    with ChatServer(*([good()] if many else []), later) as server:
        command = ["rows.jsonl", "-o", "cot.jsonl", "--concurrency", "1"] if many else ["--image", "in.png", "--prompt", "Blue."]
        arguments = [sys.executable, "-m", "dim_jax.cli", "design", *command, "--designer", "vllm:m", "--base-url", server.url]
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while len(server.requests) < 1 + many:
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    assert (process.returncode, output, errors.count("\n")) == (128 + number, "", 1), errors
    assert ("Ctrl-C" if number == signal.SIGINT else "SIGTERM") in errors
    if many:
        assert len(Path("cot.jsonl").read_text().splitlines()) == 1
        assert not FAILURES.exists()


def test_a_signal_while_the_only_answer_is_under_way(monkeypatch):
    """The answer is kept, since it is paid for, and the command ends all the same: an edit would go on to paint."""
    turnstile = Turnstile(good(), 0)

    def interrupt():
        while not server.requests:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        turnstile.opened = 1

    with ChatServer(turnstile) as server:
        thread = threading.Thread(target=interrupt)
        thread.start()
        command = ("design", "--image", "in.png", "--prompt", "Blue.", "--designer", "vllm:m", "--base-url", server.url, "-o", "one.txt")
        code, text = dim(*command)
        thread.join()
        said = "error: stopped by Ctrl-C while vllm:m was asked; its answer is kept, the same command goes on from there\n"
        assert (code, text) == (130, said)
        assert not Path("one.txt").exists()
        assert dim(*command)[0] == 0
    assert len(server.requests) == 1


def test_signal_waits_at_most_patience_for_requests_in_flight(monkeypatch):
    monkeypatch.setattr("dim_jax.designer.runner.PATIENCE", 0.2)
    with ChatServer(hang(600.0)) as server:

        def interrupt():
            while not server.requests:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        code, text = design(server)
        thread.join()
    assert code == 130
    assert "stopped by Ctrl-C, 2 remain" in text


def test_non_completion_body_raises_response_error():
    with pytest.raises(ResponseError, match="not a chat completion"):
        read_completion(b"{}")
