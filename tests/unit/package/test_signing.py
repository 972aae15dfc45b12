"""Signatures by model-signing: made with a key, checked with its public half, refused otherwise."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import SCRIPTS, files_with
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.hashing import sums_text
from shardmerge.command.verifying import signer_of, verify
from shardmerge.package.signature import check_signed, read_signature
from shardmerge.package.signing import PASSWORD, Signer, check_signature, sign

pytest.importorskip("model_signing")


def make_key(path: Path, password: bytes | None = None) -> Path:
    """Write a private key, and its public half beside it."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    lock = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "q8_0").mkdir(parents=True)
    files = {"config.json": "{}", "q8_0/m.gguf": "weights", "README.md": "a card"}
    for name, text in files.items():
        (folder / name).write_text(text)
    write_sums(folder, files)
    return folder


def write_sums(folder: Path, names: Any) -> None:
    (folder / "SHA256SUMS").write_text(sums_text({n: sha256_of(folder / n) for n in names}))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key.pem")


def test_signed_and_checked(folder: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signature = folder / "model.sig"
    sign(folder, signature, key)
    told = read_signature(signature)
    assert told.by_key and set(told.files) == {
        *("SHA256SUMS", "config.json", "q8_0/m.gguf", "README.md")
    }
    check_signed(signature, {name: sha256_of(folder / name) for name in told.files})
    public = key.with_suffix(".pub")
    verify(str(folder), signer_of(str(public)))
    assert f"signature: 4 files signed by the key {public}" in capsys.readouterr().out
    verify(str(folder))
    assert "signature: of 4 files, not checked; give `--key PUBLIC.pem`" in capsys.readouterr().out


def test_the_tool_of_others_takes_it_too(folder: Path, key: Path) -> None:
    """What the Hub's client leaves in a folder is no fault."""
    sign(folder, folder / "model.sig", key)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    (folder / ".gitattributes").touch()
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += [f"--signature={folder / 'model.sig'}", f"--public_key={key.with_suffix('.pub')}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class TestRefused:
    @pytest.fixture(autouse=True)
    def signed(self, folder: Path, key: Path) -> None:
        sign(folder, folder / "model.sig", key)

    def told(self, folder: Path, public: Path) -> str:
        with pytest.raises(UserError) as caught:
            check_signature(folder, Signer(public))
        return str(caught.value)

    def test_another_key(self, folder: Path, tmp_path: Path) -> None:
        other = make_key(tmp_path / "other.pem").with_suffix(".pub")
        assert "is no signature of these files by the key" in self.told(folder, other)

    def test_a_file_and_its_sums_that_were_changed(self, folder: Path, key: Path) -> None:
        (folder / "config.json").write_text("[]")
        write_sums(folder, ["config.json", "q8_0/m.gguf", "README.md"])
        assert "is no signature of these files" in self.told(folder, key.with_suffix(".pub"))

    def test_a_file_that_was_added(self, folder: Path, key: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        write_sums(folder, ["config.json", "q8_0/m.gguf", "README.md", "tokenizer.json"])
        told = self.told(folder, key.with_suffix(".pub"))
        assert "'tokenizer.json' is listed and not signed" in told

    def test_a_signature_that_was_edited(self, folder: Path, key: Path) -> None:
        path = folder / "model.sig"
        bundle = json.loads(path.read_text())
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        (folder / "config.json").write_text("[]")
        old, new = (read_signature(path).files["config.json"], sha256_of(folder / "config.json"))
        write_sums(folder, ["config.json", "q8_0/m.gguf", "README.md"])
        edited = base64.b64encode(payload.replace(old.encode(), new.encode())).decode()
        bundle["dsseEnvelope"]["payload"] = edited
        path.write_text(json.dumps(bundle))
        assert "is no signature of these files" in self.told(folder, key.with_suffix(".pub"))

    def test_none_where_one_is_asked_for(self, folder: Path, key: Path) -> None:
        (folder / "model.sig").unlink()
        with pytest.raises(UserError, match="is not signed"):
            verify(str(folder), signer_of(str(key.with_suffix(".pub"))))

    def test_a_key_where_an_account_is_asked_for(self, folder: Path) -> None:
        with pytest.raises(UserError, match="was made with a key"):
            check_signature(folder, Signer(None, "me@example.org", "https://example.org"))

    def test_a_private_key_as_the_public_one_is_not_shown(self, folder: Path, key: Path) -> None:
        told = self.told(folder, key)
        assert "is no public key in PEM" in told and "PRIVATE" not in told


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"dsseEnvelope": {"payload": "%%%"}}', "[" * 100_000),
        '{"dsseEnvelope": {"payload": "e30="}, "verificationMaterial": {}}',
        *(
            json.dumps(
                {
                    "verificationMaterial": {"publicKey": {}},
                    "dsseEnvelope": {
                        "payload": base64.b64encode(
                            json.dumps({"predicate": {"resources": rows}}).encode()
                        ).decode()
                    },
                }
            )
            for rows in (
                7,
                [7],
                [{"name": "../up", "algorithm": "sha256", "digest": "0" * 64}],
                [{"name": "a\nb", "algorithm": "sha256", "digest": "0" * 64}],
                [{"name": "a", "algorithm": "blake2", "digest": "0" * 64}],
                [{"name": "a", "algorithm": "sha256", "digest": "zz"}],
                [{"name": "a", "algorithm": "sha256", "digest": "0" * 64}] * 2,
            )
        ),
    ],
)
def test_a_hostile_signature_is_told_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.sig").write_text(text)
    with pytest.raises(UserError):
        read_signature(tmp_path / "model.sig")


def test_a_signature_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.sig").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no file of a signature"):
        read_signature(tmp_path / "model.sig")


class TestSecrets:
    """Neither keys nor passwords get into output or files."""

    def run(self, folder: Path, key: Path, password: str | None) -> Any:
        command = [sys.executable, str(SCRIPTS / "sign.py"), f"--folder={folder}", f"--key={key}"]
        command += [f"--output={folder / 'model.sig'}"]
        env = {"PATH": "/usr/bin:/bin"} | ({PASSWORD: password} if password else {})
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    def test_an_encrypted_key(self, folder: Path, tmp_path: Path) -> None:
        key = make_key(tmp_path / "locked.pem", b"open sesame")
        done = self.run(folder, key, None)
        assert done.returncode == 1 and PASSWORD in done.stderr
        assert not (folder / "model.sig").exists()
        done = self.run(folder, key, "wrong words")
        assert done.returncode == 1 and "wrong words" not in done.stdout + done.stderr
        done = self.run(folder, key, "open sesame")
        assert done.returncode == 0, done.stderr
        check_signature(folder, Signer(key.with_suffix(".pub")))
        secret = key.read_text().splitlines()[1]
        said = done.stdout + done.stderr + (folder / "model.sig").read_text()
        assert secret not in said and "open sesame" not in said
        assert files_with("open sesame", folder) == files_with(secret, folder) == []

    def test_no_key(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "none.pem").write_text("secret words that are no key")
        done = self.run(folder, tmp_path / "none.pem", None)
        assert done.returncode == 1 and "elliptic curve" in done.stderr
        assert "secret words" not in done.stderr and "Traceback" not in done.stderr
