"""An experiment's arguments in Locust's own parser: in `--help`, on the web page, and by themselves (`--arguments`)."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable
from typing import Any

from loadtests.options import ArgumentGroup, add_common_arguments


def add_arguments(parser: ArgumentParser, *, name: str, of: Callable[[ArgumentGroup], None]) -> None:
    """Add what the experiment called `name` takes, `of` its own and the common ones."""
    group = _ShownGroup(parser.add_argument_group(name, "What is sent, and how it is judged."))
    alone = _ShownGroup(ArgumentParser(prog=f"locust -f loadtests/{name}.py", add_help=False))
    for each in (group, alone):
        of(each)
        add_common_arguments(each)
    group.add_argument(
        "--arguments", action=_ShowArguments, nargs=0, default=SUPPRESS, const=alone.parser.format_help,
        help="show these arguments and exit", include_in_web_ui=False,
    )  # fmt: skip


class _ShownGroup:
    """A group of arguments that Locust's web page shows too; its parser does so only for arguments without a group."""

    def __init__(self, group: Any) -> None:
        self.parser = group

    def add_argument(self, *names: str, include_in_web_ui: bool = True, **facts: Any) -> Any:
        action = self.parser.add_argument(*names, **facts)
        action.include_in_web_ui = include_in_web_ui
        return action


class _ShowArguments(Action):
    """Locust's --help is printed before it reads a locustfile, and knows nothing of its arguments."""

    def __call__(self, *_: Any) -> None:
        print(self.const())
        raise SystemExit(0)
