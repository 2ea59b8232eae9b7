"""Install pip into the current environment, for systems whose Python has no `ensurepip`.

The wheel comes from the package index that pip would use, and must have the hash below.
"""

import configparser
import hashlib
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

WHEEL = "pip-25.3-py3-none-any.whl"
SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"


def setting(name: str) -> str | None:
    """Return pip's setting `name` from the environment or the first configuration file that has it."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    home = Path.home()
    files = [os.environ.get("PIP_CONFIG_FILE"), home / ".config/pip/pip.conf", home / ".pip/pip.conf", "/etc/pip.conf"]
    for file in filter(None, files):
        parser = configparser.RawConfigParser()
        parser.read(file)
        if value := parser.get("global", name, fallback=None):
            return value
    return None


def fetch(url: str, context: ssl.SSLContext) -> bytes:
    with urllib.request.urlopen(url, timeout=60, context=context) as response:
        return response.read()


def main() -> None:
    """Download, check and install pip."""
    page = (setting("index-url") or "https://pypi.org/simple").rstrip("/") + "/pip/"
    context = ssl.create_default_context(cafile=setting("cert"))
    try:
        listing = fetch(page, context).decode()
        link = re.search(rf'href="([^"#]*{re.escape(WHEEL)})[#"]', listing)
        if link is None:
            sys.exit(f"error: {page} does not offer {WHEEL}; install python3-venv instead")
        wheel = fetch(urllib.parse.urljoin(page, link[1]), context)
    except OSError as error:
        sys.exit(f"error: cannot fetch pip from {page}: {error}; check the network, or install python3-venv")
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        sys.exit(f"error: {WHEEL} from {page} is damaged or not the published one; install python3-venv instead")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WHEEL
        path.write_bytes(wheel)
        # pip's wheel can be run directly
        subprocess.run([sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", str(path)], check=True)


if __name__ == "__main__":
    main()
