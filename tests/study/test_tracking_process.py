import time

import psutil
import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study import tracking_process
from sparsemm_eval.study.tracking_process import SessionError, SessionProcess, environment, without_secrets
from sparsemm_eval.study.tracking_settings import TrackingSettings, check

ECHO = """
import json, sys, time
print("started", file=sys.stderr, flush=True)
for line in sys.stdin:
    command = json.loads(line)
    name = command["command"]
    if name == "die":
        sys.exit(7)
    if name == "sleep":
        time.sleep(60)
    reply = {"error": "refused"} if name == "fail" else command
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A session that answers with the command itself, without W&B."""
    (tmp_path / "echo_session.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tracking_process, "MODULE", "echo_session")
    process = SessionProcess(tmp_path / "wandb", tmp_path / "log.txt")
    yield process
    process.kill()


def test_replies_come_in_order_and_are_not_waited_for(process):
    process.send("a", number=1)
    process.send("b")
    assert process.busy
    assert process.call("c", 20, number=3) == {"command": "c", "number": 3}
    assert not process.busy


def test_no_reply_yet_is_none(process):
    process.send("sleep")
    assert process.reply(timeout=0) is None
    assert process.busy


def test_too_long_a_wait_is_an_error(process):
    with pytest.raises(SessionError, match=r"not answered to 'sleep' within 0\.5 s"):
        process.call("sleep", 0.5)


def test_error_of_a_command_is_raised_and_the_session_goes_on(process):
    with pytest.raises(SessionError, match="refused"):
        process.call("fail", 20)
    assert process.call("a", 20) == {"command": "a"}


def test_death_is_noticed(process):
    process.require_alive()
    with pytest.raises(SessionError, match="exit status 7"):
        process.call("die", 20)
    with pytest.raises(SessionError, match="exit status 7"):
        process.require_alive()
    with pytest.raises(SessionError, match="exit status 7"):
        process.reply(timeout=1)


def test_end_waits_and_kills_at_last(process):
    process.send("sleep")
    start = time.monotonic()
    process.end(timeout=0.2)
    assert time.monotonic() - start < 30
    assert not psutil.pid_exists(process.pid)


def test_messages_of_the_session_go_to_the_log(process, tmp_path):
    process.call("a", 20)
    assert (tmp_path / "log.txt").read_text() == "started\n"


def test_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "wandb").write_text("a file")
    with pytest.raises(OSError, match="wandb"):
        SessionProcess(tmp_path / "wandb", tmp_path / "log.txt")


def test_environment_keeps_wandb_below_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SERVICE", "of another process")
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", "chosen by the user")
    found = environment(tmp_path)
    assert "WANDB_SERVICE" not in found
    assert found["WANDB_CACHE_DIR"] == str(tmp_path / "cache")
    assert found["WANDB_DATA_DIR"] == "chosen by the user"


def test_secrets_are_blanked_out(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "marker")
    assert without_secrets("key marker refused") == "key [WANDB_API_KEY] refused"


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without W&B credentials."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def test_online_without_a_key_is_refused(nobody):
    with pytest.raises(ConfigError, match=r"wandb\.mode='online'.*WANDB_API_KEY"):
        check(TrackingSettings("online"))


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_online_with_a_key_is_accepted_without_asking_a_server(nobody, place, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    else:
        (tmp_path / ".netrc").write_text(f"machine wandb.invalid\n  login user\n  password {'0' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    check(TrackingSettings("online"))


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_other_modes_need_no_key(nobody, mode):
    check(TrackingSettings(mode))


@pytest.mark.parametrize("values", [{"mode": "of"}, {"project": ""}])
def test_settings_that_cannot_work(values):
    with pytest.raises(ConfigError, match=f"wandb.{next(iter(values))}"):
        TrackingSettings(**values)
