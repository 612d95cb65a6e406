"""Where the secret is found, how it is made when several processes need it at once, what is refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dispy import certificates, secretfiles, secrets
from dispy.errors import SecretError
from dispy.settings import VARIABLES

_PRINT_SECRET = "from dispy.secrets import show_secret; print(show_secret().text)"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("DISPY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(secretfiles, "SYSTEM_SECRET", tmp_path / "etc" / "secret")
    return tmp_path / "config" / "dispy"


def _write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_order_of_places(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(config / "secret", "user\n")
    keys = [secrets.find_credentials().key]
    _write(secretfiles.SYSTEM_SECRET, "system")
    keys.append(secrets.find_credentials().key)
    monkeypatch.setenv("DISPY_SECRET_FILE", str(_write(tmp_path / "variable", "file")))
    keys.append(secrets.find_credentials().key)
    monkeypatch.setenv("DISPY_SECRET", "variable")
    keys.append(secrets.find_credentials().key)
    keys.append(secrets.find_credentials(secret_file=str(_write(tmp_path / "named", "named"))).key)
    keys.append(secrets.find_credentials(secret="argument", secret_file="/nowhere").key)
    words = ("user", "system", "file", "variable", "named", "argument")
    assert keys == [secrets.find_credentials(secret=word).key for word in words]
    assert len(set(keys)) == len(words)


def test_sources_are_told(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.find_credentials().source == f"{config / 'secret'} (made now)"
    assert secrets.find_credentials().source == str(config / "secret")
    monkeypatch.setenv("DISPY_SECRET", "x")
    assert secrets.find_credentials().source == "DISPY_SECRET"
    assert "argument" in secrets.find_credentials(secret="x").source


def test_made_file_is_private_complete_and_alone(config: Path) -> None:
    credentials = secrets.find_credentials()
    assert stat.S_IMODE((config / "secret").stat().st_mode) == 0o600
    assert os.listdir(config) == ["secret"]
    assert secrets.find_credentials().key == credentials.key
    assert secrets.find_credentials(secret=(config / "secret").read_text()).key == credentials.key


def test_processes_that_need_a_secret_at_once_agree(config: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", _PRINT_SECRET], stdout=subprocess.PIPE, env=environment)
        for _ in range(4)
    ]
    answers = {process.communicate(timeout=30)[0] for process in processes}
    assert len(answers) == 1
    assert os.listdir(config) == ["secret"]


def test_threads_that_need_a_secret_at_once_agree(config: Path) -> None:
    barrier = threading.Barrier(8)
    texts: list[str] = []

    def find() -> None:
        barrier.wait()
        texts.append(secrets.show_secret().text)

    threads = [threading.Thread(target=find) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert len(set(texts)) == 1


def test_loser_of_the_race_reads_the_winner(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        _write(config / "secret", "winner")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert secrets.find_credentials().key == secrets.find_credentials(secret="winner").key
    assert os.listdir(config) == ["secret"]


def test_file_that_is_still_being_made_is_waited_for(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(config / "secret", "")
    monkeypatch.setattr("dispy.secretfiles.time.sleep", lambda _seconds: _write(path, "late"))
    assert secrets.show_secret().text == "late"


def test_file_system_without_hard_links(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    made = secrets.find_credentials()
    assert secrets.find_credentials().key == made.key
    assert os.listdir(config) == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660])
def test_file_that_others_can_read_is_refused_with_the_command(config: Path, mode: int) -> None:
    path = _write(config / "secret", "word", mode)
    with pytest.raises(SecretError, match=f"chmod 600 {path}"):
        secrets.find_credentials()


def test_system_file_may_be_read_by_its_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(secretfiles.SYSTEM_SECRET, "system", 0o640)
    monkeypatch.setattr(secretfiles, "_is_system_group", lambda _gid: True)
    assert secrets.show_secret().text == "system"
    secretfiles.SYSTEM_SECRET.chmod(0o644)
    with pytest.raises(SecretError, match="chown root:dispy"):
        secrets.show_secret()
    secretfiles.SYSTEM_SECRET.chmod(0o640)
    monkeypatch.setattr(secretfiles, "_is_system_group", lambda _gid: False)
    with pytest.raises(SecretError, match="chown root:dispy"):
        secrets.show_secret()


def test_file_of_another_user_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(config / "secret", "word")
    owner = os.stat(config / "secret").st_uid
    if owner == 0:
        os.chown(config / "secret", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(SecretError, match="belongs to another user"):
        secrets.find_credentials()


def test_unusable_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    def refused(path: Path, sentence: str) -> None:
        with pytest.raises(SecretError, match=sentence):
            secrets.find_credentials(secret_file=str(path))

    refused(tmp_path / "missing", "cannot be read: No such file")
    refused(_write(tmp_path / "empty", "\n"), "is empty")
    refused(_write(tmp_path / "lines", "a\nb"), "several lines")
    refused(_write(tmp_path / "large", "x" * 70000), "too large")
    refused(tmp_path, "cannot be read|not a regular file")
    binary = _write(tmp_path / "binary", "")
    binary.write_bytes(b"\xff\xfe\x00")
    refused(binary, "is not text")


def test_no_home_and_read_only_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _write(tmp_path / "blocked", "a file where a directory should be")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "blocked"))
    with pytest.raises(SecretError, match="no secret can be kept at"):
        secrets.find_credentials()
    monkeypatch.setattr("dispy.settings.config_dir", lambda: Path("~/.config/dispy"))
    with pytest.raises(SecretError, match="no home directory"):
        secrets.find_credentials()


def test_nothing_is_made_when_not_wanted(config: Path) -> None:
    with pytest.raises(SecretError, match="dispy secret make"):
        secrets.find_credentials(create=False)
    assert not config.exists()


def test_empty_secret_is_honoured_only_as_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = secrets.find_credentials(secret="")
    assert empty.empty
    assert not empty.insecure
    assert empty.key is not None
    assert secrets.find_credentials(secret="", insecure=True).insecure
    monkeypatch.setenv("DISPY_SECRET", "")
    assert not secrets.find_credentials().empty
    with pytest.raises(SecretError, match="blanks"):
        secrets.find_credentials(secret="  ")


def test_keys_differ_by_purpose_and_secret() -> None:
    one, two = secrets.find_credentials(secret="one"), secrets.find_credentials(secret="two")
    assert len({one.derive("a"), one.derive("b"), two.derive("a"), one.key}) == 4
    assert one.key_id != two.key_id
    assert len(one.key_id) == 8
    assert one.derive("a") == secrets.find_credentials(secret=" one\n").derive("a")


def test_nothing_secret_is_in_a_representation() -> None:
    credentials = secrets.find_credentials(secret="word")
    assert credentials.key is not None
    assert repr(credentials.key) not in repr(credentials)
    assert secrets.show_secret().text not in repr(secrets.show_secret())


def test_generated_secrets_need_no_stretching(monkeypatch: pytest.MonkeyPatch) -> None:
    def scrypt(*_args: object, **_options: object) -> bytes:
        raise AssertionError("stretched")

    monkeypatch.setattr("hashlib.scrypt", scrypt)
    assert secrets.find_credentials(secret=secrets.new_secret()).key is not None
    with pytest.raises(AssertionError):
        secrets.find_credentials(secret="some word never used before")


def test_key_in_memory() -> None:
    key = bytes(range(32))
    assert secrets.credentials_from_key(key).key == key
    with pytest.raises(SecretError):
        secrets.credentials_from_key(b"short")


def test_make_store_and_show(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = secrets.make_secret()
    assert (made.path, made.overridden_by) == (config / "secret", None)
    first = secrets.show_secret()
    assert first.source == str(config / "secret")
    with pytest.raises(SecretError, match="exists already"):
        secrets.make_secret()
    secrets.make_secret(replace=True)
    assert secrets.show_secret().text != first.text
    secrets.store_secret("from elsewhere\n")
    assert secrets.show_secret().text == "from elsewhere"
    assert stat.S_IMODE((config / "secret").stat().st_mode) == 0o600
    assert os.listdir(config) == ["secret"]
    with pytest.raises(SecretError, match="empty"):
        secrets.store_secret(" \n")
    monkeypatch.setenv("DISPY_SECRET", "x")
    assert secrets.store_secret("other").overridden_by == "DISPY_SECRET"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cafile": "/x"}, "without a certificate"),
        ({"keyfile": "/x"}, "without a certificate"),
        ({"certfile": "/nowhere.pem"}, "cannot be read"),
        ({"certfile": __file__}, "no certificate in PEM form"),
        ({"certfile": __file__, "keyfile": "/nowhere.key"}, "key file /nowhere.key cannot be read"),
    ],
)
def test_unusable_certificates(arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(SecretError, match=sentence):
        secrets.find_credentials(**arguments)  # type: ignore[arg-type]


def test_readable_key_file_is_refused(tmp_path: Path) -> None:
    key = _write(tmp_path / "node.key", "key", 0o644)
    with pytest.raises(SecretError, match=f"chmod 600 {key}"):
        secrets.find_credentials(certfile=__file__, keyfile=str(key))


def test_a_certificate_needs_its_own_key(tmp_path: Path) -> None:
    certificates.make_ca(tmp_path)
    one = certificates.make_certificate(tmp_path, "node", "one")
    two = certificates.make_certificate(tmp_path, "node", "two")
    with pytest.raises(SecretError, match="contains no private key: name its key with --keyfile"):
        secrets.find_credentials(certfile=str(one.certfile))
    with pytest.raises(SecretError, match="cannot be used with the certificate"):
        secrets.find_credentials(certfile=str(one.certfile), keyfile=str(two.keyfile))
    assert secrets.find_credentials(certfile=str(one.certfile), keyfile=str(one.keyfile)).key is None


def test_the_admin_secret_is_named_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.find_admin_credentials() is None
    assert secrets.find_admin_credentials(secret="") is None
    path = _write(tmp_path / "admin", "rule\n")
    keys = [secrets.find_admin_credentials(secret="rule"), secrets.find_admin_credentials(secret_file=str(path))]
    monkeypatch.setenv("DISPY_ADMIN_SECRET_FILE", str(path))
    keys.append(secrets.find_admin_credentials())
    monkeypatch.setenv("DISPY_ADMIN_SECRET", "rule")
    keys.append(secrets.find_admin_credentials())
    assert len({each.key for each in keys if each is not None}) == 1
    assert None not in keys


def test_the_admin_secret_opens_nothing_else() -> None:
    programs, admin = secrets.find_credentials(secret="word"), secrets.find_admin_credentials(secret="word")
    assert admin is not None
    assert (admin.key, admin.key_id) != (programs.key, programs.key_id)
    with pytest.raises(SecretError, match="choose another one for --admin_secret"):
        secrets.find_admin_credentials(programs, secret="word")
    other = secrets.find_admin_credentials(programs, secret="another")
    assert other is not None
    assert other.source == "argument"


def test_the_admin_secret_file_must_be_private(tmp_path: Path) -> None:
    path = _write(tmp_path / "admin", "rule", 0o644)
    with pytest.raises(SecretError, match="chmod 600"):
        secrets.find_admin_credentials(secret_file=str(path))


def test_no_variable_with_a_secret_reaches_users() -> None:
    assert {name for name in VARIABLES if "SECRET" in name} == set(secrets.SECRET_VARIABLES)


@pytest.mark.parametrize(("days", "words"), [(-1, "expired on 20"), (3, "")])
def test_certificates_that_are_out_of_date_are_refused_at_the_start(
    days: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every link would fail, one after another, and the program wait."""
    certificates.make_ca(tmp_path)
    monkeypatch.setattr(certificates, "CERTIFICATE_DAYS", days)
    made = certificates.make_certificate(tmp_path, "node", "one")
    files = {"certfile": str(made.certfile), "keyfile": str(made.keyfile), "cafile": str(tmp_path / "ca.pem")}
    if not words:
        assert secrets.find_credentials(**files).key is None
        monkeypatch.setattr(secrets.time, "time", lambda: 1e9)
        words = "is the clock of this machine right"
    with pytest.raises(SecretError, match=words):
        secrets.find_credentials(**files)
