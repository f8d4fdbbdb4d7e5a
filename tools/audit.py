"""Known vulnerabilities of the pinned packages: `make audit`.

pip-audit asks the package index about every version. It ends well, too, where the service knows
none of the packages (a mirror that has no such service), so this says how many packages were
looked at. Exit status 0: looked at, nothing found; 1: found; 2: could not ask."""

import json
import re
import subprocess
import sys
from pathlib import Path


def told(status: int, out: str, errors: str) -> tuple[int, str]:
    """Exit status and sentence for what pip-audit printed (JSON on stdout)."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = ([line for line in errors.splitlines() if line.strip()] or [f"status {status}"])[
            -1
        ].strip()
        return (
            2,
            (
                "audit: the vulnerability service could not be asked, so nothing was checked"
                f" ({last[:200]})"
            ),
        )
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    bad = [
        f"{package['name']} {package['version']}:"
        f" {', '.join(found['id'] for found in package['vulns'])}"
        for package in packages
        if package.get("vulns")
    ]
    if len(skipped) == len(packages):
        return (
            2,
            (
                f"audit: the vulnerability service knows none of the {len(packages)} packages, so"
                " nothing was checked"
            ),
        )
    looked = f"{len(packages) - len(skipped)} packages were checked" + (
        f", {len(skipped)} could not be ({', '.join(skipped[:5])})" if skipped else ""
    )
    return (
        (1, f"audit: {looked}; known vulnerabilities:\n" + "\n".join(bad))
        if bad
        else (0, f"audit: {looked}; no known vulnerability")
    )


def main(lock: Path) -> int:
    # pip-audit reads plain pins; the hashes were checked when the packages were installed.
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--no-deps",
        "--requirement",
        str(lock),
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    status, sentence = told(
        done.returncode, done.stdout, re.sub(r"://[^/@\s]*@", "://", done.stderr)
    )
    print(sentence, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
