"""A page opened in a browser without a window, driven by a script, and read back."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ERRORS = re.compile(r"CONSOLE\S*\] .*(?:Uncaught|Refused|Error|violates)")


def opened(page, folder, *, size="1000,800", virtual=True, script=""):
    """The page after its scripts and `script` have run: its HTML, the `data-` of its body, and what the browser complained of.

    virtual: let timers run at once. script: replaces the policy of the page, which would not let it run.
    """
    folder.mkdir()
    if script:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{{{script}}}</script></body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={size}"]
    options += [f"--user-data-dir={folder / 'profile'}", *(["--virtual-time-budget=3000"] if virtual else [])]
    command = [CHROMIUM, *options, "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)[0]
    told = {name: html.unescape(value) for name, value in re.findall(r'data-([a-z-]+)="([^"]*)"', body)}
    return done.stdout, told, ERRORS.findall(done.stderr)
