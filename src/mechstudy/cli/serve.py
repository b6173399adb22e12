"""`serve`: a run's report with its model at hand, for the browser of this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mechstudy import api, serving
from mechstudy.cli import one_prompt
from mechstudy.cli.one_prompt import noted
from mechstudy.cli.options import say
from mechstudy.core.notices import counted
from mechstudy.study.finished import check_run


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run, such as runs/demo.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="SOURCE", help="Where the run's model is now. Default: the study's."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    device: one_prompt.Device = "auto",
    open_page: one_prompt.Open = False,
) -> None:
    """Serve a run's report with its model: steer, explain other prompts, measure what is pinned in a graph.

    It listens on this machine alone (127.0.0.1), at an address that nobody can guess. Over SSH, forward the port:
    ssh -L 8000:127.0.0.1:8000 HOST, with --port 8000. Ctrl+C stops it. The report's files stay as they are.

    [dim]mechstudy serve runs/demo --open[/]
    """
    check_run(run.expanduser())
    opened_run = api.open_run(run)
    report = opened_run.path / "report"
    serving.require_report(report)
    with noted():
        dictionaries = str(run) if len(opened_run.dictionaries) else None
        opened = one_prompt.opened(model or one_prompt.source_of(str(run)), dictionaries, device)
    live = serving.LiveRun(opened_run, opened.model, opened.dictionaries)
    server = serving.ReportServer(live, report, port)
    layers = counted(len(opened.dictionaries), "layer")
    print(f"{opened.model.name}, with the dictionaries of {layers}" if opened.dictionaries else opened.model.name)
    print(f"report: {server.address}", flush=True)
    say("Whoever has this address can use the model. Ctrl+C stops.")
    if open_page and not webbrowser.open(server.address):
        say("note: no browser could be opened")
    try:
        server.run()
    except KeyboardInterrupt:
        say("stopped")
