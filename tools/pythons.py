"""Is there a wheel of every locked package for each Python and system?

    python tools/pythons.py

Asks the package index through uv, installs nothing. `make pythons` runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / "build" / "tools" / "bin" / "uv"
PYTHONS = ("3.11.5", "3.12", "3.13")
SYSTEMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
# bitsandbytes has wheels from macOS 14 on
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
# Published as source alone; pure Python, so no compiler is asked for.
SOURCE = ("connection-pool", "langdetect")


def resolved(python: str, system: str) -> tuple[int, str]:
    """How many packages the lock installs there, each from a wheel; or 0, and what is missing."""
    command = [UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--constraint", "requirements.lock", "--extra", "test", "--extra", "sweep"]
    command += ["--python-version", python, "--python-platform", system, "--only-binary", ":all:"]
    for name in SOURCE:
        command += ["--no-binary", name]
    command += ["pyproject.toml"]
    where = os.environ | MACOS
    done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True)
    if done.returncode:
        return 0, done.stderr.strip()
    return sum("==" in line for line in done.stdout.splitlines()), ""


def main() -> int:
    """Print a line for each Python and system; 1 where a wheel is missing."""
    status = 0
    for python in PYTHONS:
        for system in SYSTEMS:
            count, missing = resolved(python, system)
            status |= not count
            print(f"Python {python:<7} {system:<24} {count or missing}", flush=True)
    print(f"as source alone: {', '.join(SOURCE)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
