"""`edgeml`: one command; each sub-command's module is loaded only when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from edgeml.wire.errors import EdgemlError, EnvironmentProblem

INTERRUPTED: Final = 130  # 128 + SIGINT, the shell's convention


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command: its module has a Typer application named `attribute`; `extra` installs what the module imports."""

    module: str
    attribute: str
    extra: str | None
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "export": Command("edgeml.exporter.cli", "export_app", "export", "Convert and quantize a model, and prove the result."),
    "micro": Command("edgeml.exporter.target.micro_cli", "app", "micro", "Write C sources for a microcontroller, proved."),
    "web": Command("edgeml.exporter.target.web_cli", "app", None, "Make a page that proves a bundle in a browser."),
    "inspect": Command("edgeml.runtime.cli", "inspect_app", None, "Show what is in a bundle or a model file."),
    "explain": Command("edgeml.exporter.layers_cli", "explain_app", "export", "Show what each layer's precision costs."),
    "diff": Command("edgeml.exporter.layers_cli", "diff_app", "export", "Compare two models layer by layer."),
    "bisect": Command("edgeml.exporter.layers_cli", "bisect_app", "export", "Save the smallest piece that is wrong."),
    "verify": Command("edgeml.runtime.cli", "verify_app", None, "Check a bundle's bytes, then its golden vectors here."),
    "run": Command("edgeml.runtime.cli", "run_app", None, "Run a bundle on samples from an .npz file."),
    "bench": Command("edgeml.runtime.bench.cli", "app", None, "Measure how fast each artifact is, here or over ssh."),
    "doctor": Command("edgeml.runtime.doctor", "app", None, "Say what this machine can run, and what is missing."),
    "agent": Command("edgeml.runtime.agent_cli", "app", None, "Run the device agent: telemetry, updates, fallback."),
    "serve": Command("edgeml.serving.cli", "app", "serve", "Serve a bundle over HTTP (Open Inference Protocol v2)."),
    "fleet": Command("edgeml.fleet.cli", "app", "fleet", "Publish versions and roll them out."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0, or with the exit code of the error (see `edgeml.wire.errors`)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in {"-h", "--help"}:
        print(_overview())
        sys.exit(0 if argv else 2)
    if argv[0] in {"-V", "--version"}:
        print(f"edgeml {_version()}")
        sys.exit(0)
    command = COMMANDS.get(argv[0])
    if command is None:
        print(f"error: {_no_command(argv[0])}", file=sys.stderr)
        sys.exit(2)
    try:
        _call(command, argv[0], argv[1:])
    except EdgemlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _call(command: Command, name: str, argv: list[str]) -> None:
    try:
        module = importlib.import_module(command.module)
        application = getattr(module, command.attribute)
        application.rich_markup_mode = None  # plain help: `[/folder]` is text, and a flag takes no `<bool>`
        application(args=argv, prog_name=f"edgeml {name}")  # a command may load what is heavy when it runs
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("edgeml") or command.extra is None:
            raise
        raise EnvironmentProblem(
            f"`edgeml {name}` needs {missing!r}", hint=f"install edgeml-toolkit[{command.extra}]"
        ) from error


def _no_command(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"no command {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}")


def _version() -> str:
    try:
        return version("edgeml-toolkit")
    except PackageNotFoundError:
        return "0 (not installed)"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "Usage: edgeml COMMAND [OPTIONS]",
        "",
        "Export models for the edge, run them on devices, and roll them out on evidence.",
        "",
        *(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()),
        "",
        "`edgeml COMMAND --help` says more. Exit codes: 0 pass, 2 usage, 3 parity, 4 budget, 5 unsupported, 6 environment.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
