"""Takes the pictures of the app that the README shows, with a Chromium on the PATH.

python docs/screenshots.py --model runs/fashion runs/digits --image runs/fashion/samples/4.png
"""

import argparse
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


_PORT = 7979
_IMAGES = Path(__file__).with_name("images")


def main() -> None:
    """Serves the models and saves `demo.png` and `demo_test.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", required=True, help="Hub ids or folders; the first is shown")
    parser.add_argument("--image", type=Path, required=True, help="what it is asked about")
    arguments = parser.parse_args()
    command = ["from vitrail.cli.main import main; main()", "demo", "--port", str(_PORT), "--model", *arguments.model]
    app = subprocess.Popen([sys.executable, "-c", *command])
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1180, "height": 940})
            page.goto(_served())
            photograph(page, arguments.image)
    finally:
        app.terminate()
        app.wait()


def photograph(page: Page, image: Path) -> None:
    """The first view, of relevance, and what hiding patches does."""
    page.locator("#image input[type=file]").set_input_files(image)
    page.locator("#lens canvas").wait_for()
    page.get_by_label("Relevance", exact=True).first.check()
    page.get_by_text("Relevance of").wait_for()
    page.wait_for_timeout(1500)
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=_IMAGES / "demo.png")
    page.get_by_role("tab", name="Is it true?").click()
    page.locator("#test").click()
    page.locator("#hidden img").nth(5).wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    tab = page.get_by_role("tabpanel").filter(has=page.locator("#verdict")).last
    tab.screenshot(path=_IMAGES / "demo_test.png")


def _served() -> str:
    address = f"http://127.0.0.1:{_PORT}"
    for _ in range(300):
        try:
            urllib.request.urlopen(address).close()
            return address
        except OSError:
            time.sleep(0.1)
    raise SystemExit("The app has not started.")


if __name__ == "__main__":
    main()
