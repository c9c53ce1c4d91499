"""Where messages go: a notification service, by its URL, or a command. In a thread of their own, so they may wait."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

from trainwatch.alerts.telling import Message
from trainwatch.errors import UserError
from trainwatch.schema import SEVERITIES
from trainwatch.text.wording import clean, plural

COMMAND_SECONDS = 60.0  # that a command may take: it should hand a message on, and not work on it
SPELT = 8  # messages of one delivery that are spelt out for people; a program gets all of them
ERRORS = 4096  # bytes of what a command says on stderr that are looked at


class Channel(Protocol):
    """One receiver. ``name`` may be shown: it holds no secret. ``identity`` tells it from others, and is not shown."""

    name: str
    identity: str

    def deliver(self, messages: Sequence[Message]) -> str:
        """Hand them over, together; why that failed, or nothing."""

    def abandon(self) -> None:
        """The watching ends: leave nothing behind that still works on a delivery."""


class Notification:
    """Any of the services that apprise knows, by their URLs."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a URL that no service has, and where apprise is not installed."""
        try:
            import apprise
        except ModuleNotFoundError as error:
            raise UserError(f"--notify needs {error.name}; `pip install {error.name}` brings it.") from None
        logging.getLogger("apprise").addHandler(logging.NullHandler())  # or it writes across the view
        service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if not isinstance(service, apprise.NotifyBase):
            kind = clean(url.partition(":")[0], 20)
            raise UserError(
                f"--notify {kind}://...: is no URL that apprise knows; it takes such as json://host/path or "
                "slack://TOKEN, see https://github.com/caronc/apprise/wiki."
            )
        self.name, self.identity = clean(service.url(privacy=True).partition("?")[0], 80), url
        self._service: Any = apprise.Apprise()
        self._service.add(service)
        self._kinds = {"critical": apprise.NotifyType.FAILURE, "warning": apprise.NotifyType.WARNING}
        self._text, self._info = apprise.NotifyFormat.TEXT, apprise.NotifyType.INFO

    def deliver(self, messages: Sequence[Message]) -> str:
        """One notification, whatever their number."""
        title, body = together(messages)
        kind = self._kinds.get(SEVERITIES[max(0, *(message.grade for message in messages), 0)], self._info)
        sent = self._service.notify(title=title, body=body, notify_type=kind, body_format=self._text)
        return "" if sent else "it could not be reached, or did not take the message"

    def abandon(self) -> None:
        """apprise's own time limits end a request."""


class Command:
    """A command that gets each message as a line of JSON on stdin; no shell, and no argument comes from a log."""

    def __init__(self, command: str) -> None:
        """Raises UserError for what cannot be run."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--exec {command!r}: cannot be split into words ({error}); check its quotes.") from None
        if not self._words or shutil.which(self._words[0]) is None:
            what = f"there is no command {self._words[0]!r}" if self._words else "is empty"
            raise UserError(f"--exec {command!r}: {what}; name one that can be run, no shell reads it.")
        self.name, self.identity = clean(f"--exec {self._words[0]}", 80), command
        self._process: subprocess.Popen[bytes] | None = None

    def deliver(self, messages: Sequence[Message]) -> str:
        """One process, whatever their number."""
        lines = "".join(f"{json.dumps(message.data, allow_nan=False)}\n" for message in messages).encode()
        with tempfile.TemporaryFile() as said:
            try:
                self._process = subprocess.Popen(
                    self._words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
                )
            except OSError as error:
                return f"it cannot be run ({error.strerror})"
            try:
                self._process.communicate(lines, timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                self.abandon()
                return f"it was not done after {COMMAND_SECONDS:.0f} s"
            said.seek(0)
            last = said.read(ERRORS).decode("utf-8", "replace").strip().splitlines()[-1:]
        code = self._process.returncode
        return f"exit code {code}{f' ({clean(last[0], 120)})' if last else ''}" if code else ""

    def abandon(self) -> None:
        """Kill it and what it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def together(messages: Sequence[Message]) -> tuple[str, str]:
    """Title and body of one notification. The gravest leads; a name in a log calls nobody."""
    if len(messages) == 1:
        title, body = messages[0].title, messages[0].body
    else:
        ranked = sorted(messages, key=lambda message: (message.data["event"] != "end", -message.grade))
        title = f"{ranked[0].title}, and {plural(len(messages) - 1, 'message')} more"
        body = "\n\n".join(f"{message.title}\n{message.body}" for message in ranked[:SPELT])
        body += f"\n\nand {len(ranked) - SPELT:,} more" if len(ranked) > SPELT else ""
    return title.replace("@", "@\u200b"), body.replace("@", "@\u200b")
