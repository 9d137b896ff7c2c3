"""The page in a real browser: every tab used, a wrong file, two visitors at once. Pictures of it stay in --basetemp.

Needs Chromium: `apt-get install chromium`.
"""

import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
ROOT = Path(__file__).parent.parent
PORT = 7861


@contextmanager
def served(folder, log, port):
    """The page that app.py in a folder makes, at its address."""
    with log.open("w+") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=folder, stdout=output, stderr=output
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(120):
                try:
                    urlopen(address)
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(1)
            yield address
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page on the shipped pipeline."""
    with served(ROOT, tmp_path_factory.mktemp("demo") / "log", PORT) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(address)
    yield page
    page.close()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Two faces, cut out of the shipped samples."""
    folder = tmp_path_factory.mktemp("faces")
    sheet = Image.open(ROOT / "checkpoints" / "celeba64" / "samples.png").convert("RGB")
    for number in (0, 1):
        sheet.crop((2 + 66 * number, 2, 66 + 66 * number, 66)).save(folder / f"{number}.png")
    return folder


def test_generate(page, tmp_path):
    start = time.perf_counter()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#samples img")
    first = time.perf_counter() - start
    page.wait_for_function("document.querySelectorAll('#samples img').length >= 8")
    shown = None
    while shown != (shown := page.locator("#samples img").evaluate_all("images => images.map(image => image.src)")):
        page.wait_for_timeout(15_000)  # until no new pictures come, on a slow machine too
    page.screenshot(path=tmp_path / "generate.png")
    print(f"first picture after {first:.1f} s")


def test_reconstruct(page, faces, tmp_path):
    page.get_by_role("tab", name="Reconstruct").click()
    page.set_input_files("#upload input[type=file]", faces / "0.png")
    page.wait_for_selector("#bits >> text=/1920 bits .* PSNR/")
    page.wait_for_selector("#reconstruction img")
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "reconstruct.png")


def test_a_file_that_is_no_image_is_refused_and_the_page_goes_on(page, faces, tmp_path):
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    page.get_by_role("tab", name="Reconstruct").click()
    page.set_input_files("#upload input[type=file]", wrong)
    page.wait_for_selector("text=/error/i")
    page.reload()
    page.get_by_role("tab", name="Reconstruct").click()
    page.set_input_files("#upload input[type=file]", faces / "1.png")
    page.wait_for_selector("#bits >> text=/PSNR/")


def test_look_inside(page, faces, tmp_path):
    page.get_by_role("tab", name="Look inside").click()
    page.set_input_files("#first input[type=file]", faces / "0.png")
    page.set_input_files("#second input[type=file]", faces / "1.png")
    page.wait_for_selector("#change >> text=/of the pixels change/")
    page.wait_for_function("document.querySelectorAll('#bands img').length >= 9")
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "inside.png", full_page=True)


def test_examples_are_there_to_click_on(page):
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator(".gallery-item:visible").first.click()
    page.wait_for_selector("#bits >> text=/PSNR/")
    page.get_by_role("tab", name="Look inside").click()
    page.locator("table tr.tr-body:visible, .gallery-item:visible").first.click()
    page.wait_for_function("document.querySelectorAll('#bands img').length >= 9")


def test_interpolate(page, tmp_path):
    page.get_by_role("tab", name="Interpolate").click()
    page.get_by_role("button", name="Interpolate").click()
    page.wait_for_function("document.querySelectorAll('#way img').length >= 8")
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "interpolate.png")


def test_the_space_is_the_same_page_from_its_own_files(browser, tmp_path):
    space = tmp_path / "space"
    subprocess.run(["make", "space", f"SPACE={space}"], cwd=ROOT, check=True, capture_output=True)
    where = "import demo, fq_ldm, fq_ldm.configs; print(fq_ldm.__file__, demo.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=space, check=True, capture_output=True, text=True).stdout
    assert all(path.startswith(str(space)) for path in found.split())
    with served(space, tmp_path / "log", PORT + 1) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector("#samples img", timeout=60_000)
        page.close()


def test_two_visitors_at_once(browser, address, page):
    other = browser.new_page()
    other.set_default_timeout(120_000)
    other.goto(address)
    for each in (page, other):
        each.get_by_role("button", name="Generate").click()
    for each in (page, other):
        each.wait_for_function("document.querySelectorAll('#samples img').length >= 8", timeout=120_000)
        assert not each.locator("text=/^Error$/").count()
    other.close()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/?", page.url)
