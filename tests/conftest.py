import shutil

import pytest


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
