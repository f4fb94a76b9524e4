"""A program that opens the web page of an export in Firefox or in WebKitGTK's MiniBrowser, and prints what it sees.

    xvfb-run -a python browser_checks.py BROWSER DRIVER URL FILES SCREENSHOT

BROWSER and DRIVER are the paths of the browser and of its WebDriver. FILES is a folder with picture files that the page
reads. The output is JSON: {name of a check: result}; the result "files" has the RGB values of each file in base64.
WebKitGTK needs a display, so xvfb-run starts this program.
"""

import base64
import json
import pathlib
import sys

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.firefox.service import Service as FirefoxService
from selenium.webdriver.support.wait import WebDriverWait
from selenium.webdriver.webkitgtk.service import Service as WebKitService

# Seconds that the page may take for a step on a slow machine.
PATIENCE = 600
# Counts the values of noise that differ after decoding.
ROUND_TRIP = """
const { encode, decode } = window.tfdecouple;
const size = document.querySelector("#grid canvas.model").width;
let different = 0;
for (let number = 0; number < 4; number++) {
  const image = Uint8Array.from({ length: size * size * 3 }, () => 256 * Math.random());
  const { z, v } = await encode(image, 1);
  const decoded = await decode(z, v, 1);
  different += image.filter((value, index) => value !== decoded[index]).length;
}
return different;
"""
READ_FILE = """
const [name, content, size] = given;
const { readSquareImage } = await import(new URL("image_files.js", location.href));
const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
const pixels = await readSquareImage(new Blob([bytes]), name, size);
return btoa(Array.from(pixels, (byte) => String.fromCharCode(byte)).join(""));
"""


def check_page(driver, files, screenshot):
    """Returns {name of a check: result} for the page that `driver` shows."""

    def run(body, *given):
        """Runs the body of an async function in the page; returns its result, or "error: " and the error."""
        script = f"const given = [...arguments], done = given.pop(); (async () => {{{body}}})()"
        return driver.execute_async_script(f"{script}.then(done, (error) => done(`error: ${{error}}`))", *given)

    def wait(script, *given):
        WebDriverWait(driver, PATIENCE).until(lambda _: driver.execute_script(f"return {script}", *given))

    wait('document.querySelector("#verdict")?.textContent.startsWith("Exact")')
    results = {"verdict": driver.find_element(By.ID, "verdict").text, "values of noise that differ": run(ROUND_TRIP)}
    size = driver.execute_script('return document.querySelector("#grid canvas.model").width')
    results["files"] = {
        path.name: run(READ_FILE, path.name, base64.b64encode(path.read_bytes()).decode(), size)
        for path in sorted(files.iterdir())
    }
    slider = driver.find_element(By.ID, "walk-z")
    results["keys"] = []
    for key in (Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.PAGE_DOWN, Keys.ARROW_UP, Keys.END):
        slider.send_keys(key)
        results["keys"].append(slider.get_attribute("aria-valuetext"))
    # The examples are photographs, so all pictures of the grid can be shown at their own size.
    wait('[...document.querySelectorAll("#grid canvas.full-size")].every((one) => !one.hidden && one.width > 1)')
    results["full size"] = driver.execute_script(
        'return [...document.querySelectorAll("#grid canvas.full-size")].map((one) => [one.width, one.height])'
    )
    driver.save_screenshot(screenshot)
    return results


def open_browser(browser, driver):
    """Starts a browser; returns Selenium's object for it."""
    if "firefox" in pathlib.Path(browser).name:
        options = webdriver.FirefoxOptions()
        options.binary_location = browser
        return webdriver.Firefox(options, FirefoxService(driver))
    options = webdriver.WebKitGTKOptions()
    options.binary_location = browser
    options.add_argument("--automation")
    return webdriver.WebKitGTK(options, service=WebKitService(driver))


if __name__ == "__main__":
    browser, driver_path, url, files, screenshot = sys.argv[1:]
    driver = open_browser(browser, driver_path)
    try:
        driver.set_script_timeout(PATIENCE)
        driver.set_window_size(1280, 1000)
        driver.get(url)
        print(json.dumps(check_page(driver, pathlib.Path(files), screenshot)))
    finally:
        driver.quit()
