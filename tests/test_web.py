"""The pages in a real browser: a take is begun, heard, directed, left and found again."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Page, async_playwright

from tests.service import run, served, until

RING = "a black ring bouncing in a yellow room"
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-gpu"]
LISTEN = """
() => {
  const context = new AudioContext(), heard = context.createAnalyser(), video = document.getElementById("video");
  context.createMediaElementSource(video).connect(heard);
  heard.connect(context.destination);
  window.loudest = 0;
  setInterval(() => {
    const wave = new Float32Array(heard.fftSize);
    heard.getFloatTimeDomainData(wave);
    window.loudest = Math.max(window.loudest, ...wave.map(Math.abs));
  }, 50);
}
"""
COLOUR = """
() => {
  const canvas = document.createElement("canvas"), video = document.getElementById("video");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const flat = canvas.getContext("2d");
  flat.drawImage(video, 0, 0);
  return [...flat.getImageData(4, 4, 1, 1).data].slice(0, 3);
}
"""
UNSENT = """
async () => {
  const { Watch } = await import("./watch.js"), socket = { readyState: WebSocket.CLOSED };
  const watch = Object.assign(Object.create(Watch.prototype), { socket, answers: new Map(), number: 0 });
  return watch.control({ do: "stop" }).catch((problem) => `${problem.detail}, ${watch.answers.size} wait`);
}
"""
STARTED = "[...document.querySelectorAll('#log li')].filter(l => l.textContent.startsWith('started')).length === %d"


@asynccontextmanager
async def browser() -> AsyncIterator[tuple[Page, Any, str, list[str]]]:
    """A page of a served player, the generator behind it, its address, and whatever went wrong in the page."""
    async with served() as (made, _, url), page_of(url) as (page, wrong):
        yield page, made, url, wrong


@asynccontextmanager
async def page_of(url: str) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page in Chromium, and whatever went wrong in it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "no chromium on the path; scripts/test.sh installs it, or: apt-get install chromium"
    wrong: list[str] = []
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = await opened.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        await page.goto(url)
        yield page, wrong
        await opened.close()


async def eventually(page: Page, condition: str, seconds: float = 30) -> None:
    """Wait until an expression is true in the page."""
    await page.wait_for_function(condition, timeout=1000 * seconds)


def test_a_take_is_played_heard_directed_and_survives_a_reload() -> None:
    async def test() -> None:
        async with browser() as (page, made, _, wrong):
            await page.evaluate(LISTEN)
            await page.click("text=Start a take")
            await eventually(page, "document.getElementById('video').currentTime > 2")
            assert await page.evaluate("window.loudest") > 0.02
            await page.fill("#next", RING)
            await page.click("text=Cut to it")
            await eventually(page, "document.querySelectorAll('#scenes img[src]').length === 2")
            assert await page.locator("#scenes [aria-current]").inner_text() != "opening"
            await page.locator("#scenes button", has_text="opening").click()
            await eventually(page, "document.querySelector('#scenes [aria-current]').textContent === 'opening'")
            assert "return to opening: from chunk" in await page.inner_text("#log")
            (session,) = made.sessions
            await page.reload()
            await eventually(page, "document.getElementById('video').currentTime > 0 && !document.hidden")
            at = await page.evaluate("document.getElementById('video').currentTime")
            await eventually(page, f"document.getElementById('video').currentTime > {at} + 1")
            assert list(made.sessions) == [session]
            assert not wrong

    run(test)


def test_generation_keeps_pace_with_the_player_and_not_ahead_of_it() -> None:
    async def test() -> None:
        async with browser() as (page, made, _, wrong):
            await page.click("text=Start a take")
            await eventually(page, "document.getElementById('video').currentTime > 4")
            (live,) = made.sessions.values()
            at = await page.evaluate("document.getElementById('video').currentTime")
            assert live.next_chunk * live.seconds < at + 2.4 + (live.pace.lead + 2) * live.seconds
            await page.click("#pause")
            await eventually(page, "document.getElementById('state').textContent.startsWith('paused')")
            assert live.state == "paused"
            await page.click("#pause")
            await eventually(page, "document.getElementById('state').textContent.startsWith('running')")
            await page.click("#stop")
            await eventually(page, "document.getElementById('stop').disabled")
            await until(lambda: not made.sessions)
            assert not wrong

    run(test)


def test_the_studio_shows_the_cache_at_work() -> None:
    async def test() -> None:
        async with browser() as (page, made, _, wrong):
            await page.click("text=Start a take")
            await eventually(page, "document.getElementById('video').currentTime > 1")
            await page.click("#to-studio")
            await eventually(page, "document.querySelectorAll('#lanes rect[fill^=\"#\"]').length >= 8")
            await eventually(page, "document.querySelector('#drift polyline') !== null")
            assert "in the pool, bounded" in await page.inner_text("#total")
            assert await page.locator("#session option").count() == len(made.sessions) == 1
            assert not wrong

    run(test)


def test_a_service_that_refuses_or_is_not_connected_is_told_in_the_page() -> None:
    async def test() -> None:
        async with browser() as (page, made, _, wrong):
            for seed in range(made.capacity):
                await page.fill("#seed", str(seed))
                await page.click("text=Start a take")
                await eventually(page, STARTED % (seed + 1))
            await page.click("text=Start a take")
            await eventually(page, "document.querySelector('#log .problem') !== null")
            assert "places of this generator are taken" in await page.inner_text("#log .problem")
            assert await page.evaluate(UNSENT) == "there is no connection now, 0 wait"
            assert [w for w in wrong if "429" not in w] == []

    run(test)
