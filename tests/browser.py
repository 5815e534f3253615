"""A headless chromium driven over its remote debugging, as far as the page's tests need it."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}


class Browser:
    """One tab, for the time of a with statement."""

    def __init__(self, folder, port):
        self.folder, self.port, self.number = folder, port, 0

    def __enter__(self):
        command = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--remote-debugging-port={self.port}", f"--user-data-dir={self.folder}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{self.port}/json"
        tabs = self.until(lambda: self.tabs(address))
        where = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.socket = connect(where, max_size=None, proxy=None)
        self.call("Page.enable")
        return self

    def __exit__(self, *error):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    @staticmethod
    def tabs(address):
        """What the browser has open; nothing while it starts."""
        with contextlib.suppress(OSError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            return json.load(opener.open(address, timeout=5))
        return None

    def call(self, method, **params):
        """One command of the protocol: its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            reply = json.loads(self.socket.recv(timeout=60))
            if reply.get("id") == self.number:
                assert "error" not in reply, reply
                return reply["result"]

    def js(self, code):
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def until(self, what, seconds=90):
        """Wait until a function, or an expression in the page, is true: its value."""
        end = time.monotonic() + seconds
        while not (found := what() if callable(what) else self.js(what)):
            assert time.monotonic() < end, (what, None if callable(what) else self.js("document.body.innerText"))
            time.sleep(0.1)
        return found

    def size(self, width, height):
        """The window's size, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)  # fmt: skip

    def open(self, url):
        """Load an address."""
        self.call("Page.navigate", url=url)

    def shot(self, path):
        """A picture of the window, as a file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def click(self, selector):
        """Click the element that a selector names, where it stands, as a mouse would."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y = self.js(f"(() => {{const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]}})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector, text):
        """Put text into a field and press Enter."""
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)
        for kind, more in (("keyDown", {"text": "\r"}), ("keyUp", {})):
            self.call("Input.dispatchKeyEvent", type=kind, **KEYS, **more)
