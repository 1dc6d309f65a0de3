"""`review` on the command line: serve the page, and say what came of it."""

import signal
from pathlib import Path

from antibackdoor.cli.telling import told
from antibackdoor.errors import spelled_out


def review(run: Path, *, data: Path | None = None, port: int = 0, cache: Path | None = None) -> None:
    """Accept or reject the suspects of a run in a browser; `train --decisions` uses your decisions.

    The page is served only on this machine, and its URL contains a secret. Each click is saved to decisions.csv in the
    run folder. To stop, press the button or Ctrl-C.

    Parameters
    ----------
    run
        The run folder of a scan or a training.
    data
        The data that were scanned or trained on, for pictures of all suspects. The run folder holds only a few dozen.
    port
        Port to listen on; 0 for any free port.
    cache
        Where to keep decoded images.
    """
    from antibackdoor.app.reviewing import ReviewSettings, open_review
    from antibackdoor.review.server import ReviewServer
    from antibackdoor.runs.lock import acquire, release

    page = open_review(ReviewSettings(run, data, cache))
    lock = acquire(run)
    try:
        with ReviewServer(page, port) as server:
            print(f"Review: {server.url}", flush=True)
            told("Open this address in a browser on this machine. End with Finish on the page, or with Ctrl-C.")
            server.serve_forever()
    except KeyboardInterrupt as stop:  # Ctrl-C is how a review ends; another signal is told as everywhere
        if getattr(stop, "number", signal.SIGINT) != signal.SIGINT:
            raise
    finally:
        release(run, lock)
        counts = [page.session.counts(group) for group in page.session.groups]
        n_accepted, n_rejected, n_open = (sum(parts) for parts in zip(*counts, strict=True)) if counts else (0, 0, 0)
        told(f"{n_accepted} suspects accepted, {n_rejected} rejected, {n_open} open. Use it: {page.next_step}")
    print(spelled_out(f"Decisions: {page.session.path}"))
