"""MLflow's pages in a real browser: what they say, once they say it, and what can be clicked."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

DRIVER = shutil.which("chromedriver")
NEEDS_CHROME = pytest.mark.skipif(DRIVER is None, reason="no browser: apt-get install chromium chromium-driver")
SECONDS = 30.0


@contextmanager
def chrome() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    size = "--window-size=1600,1000"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", size):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        yield driver


def text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def sees(browser: webdriver.Chrome, *words: str) -> str:
    """The page's text, once it says all of `words`."""

    def said(_: object) -> bool:
        return all(word in text(browser) for word in words)

    wait = WebDriverWait(browser, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    wait.until(said, f"{words} is not on the page {browser.current_url}")
    return text(browser)


def click(browser: webdriver.Chrome, label: str) -> None:
    """The link or the switch of that label; without the mouse, since MLflow's tips for new users lie over the page."""

    def found(_: object) -> WebElement | None:
        shown = f"//*[self::a or self::label or self::button][normalize-space()='{label}']"
        return next((one for one in browser.find_elements(By.XPATH, shown) if one.is_displayed()), None)

    element = WebDriverWait(browser, SECONDS).until(found, f"no {label!r} to click on {browser.current_url}")
    if element.get_attribute("target") == "_blank":  # MLflow opens the links of a description in a new tab
        opens(browser, element.get_attribute("href"))
    else:
        browser.execute_script("arguments[0].click()", element)


def opens(browser: webdriver.Chrome, url: str) -> None:
    browser.get("about:blank")  # an address that differs in its #fragment only would load nothing
    browser.get(url)
