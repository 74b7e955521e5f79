import shutil

import pytest
from jupyter_browser import serve


@pytest.fixture(scope="session")
def chromium():
    "A headless Chromium; the tests that ask for it are skipped by name where there is none."
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def jupyter(chromium, tmp_path_factory):
    "One JupyterLab server for the session; `jupyter_browser.notebook` opens and runs a notebook on it."
    with serve(tmp_path_factory.mktemp("jupyter")) as server:
        yield server
