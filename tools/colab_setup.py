"""The project's packages on Google Colab, beside those that Colab came with.

    import colab_setup
    colab_setup.prepare("/content/shfcas")

The first code cell of the notebooks calls it. The standard library alone: nothing else is there
yet. Colab's torch and numpy stay as they are, because its other packages and drivers are made
for them.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = ("torch", "torchvision", "torchaudio", "numpy")
EXTRAS = "notebooks"


def prepare(place):
    """Install the project that lies in a folder, go there, and let widgets of others be shown.

    Says in one line what to do where a package that was loaded already has changed.
    """
    place = Path(place)
    loaded = versions(distributions(sys.modules))
    install(place)
    os.chdir(place)
    sys.path.insert(0, str(place))
    from google.colab import output

    output.enable_custom_widget_manager()
    changed = differing(loaded)
    if changed:
        print(f"Restart the session (Runtime > Restart session) and run again: {changed}")


def install(place):
    """pip, with the versions of what Colab brings held. Raises RuntimeError in one sentence."""
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text("".join(f"{name}=={found}\n" for name, found in versions(KEPT).items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(held)]
        command += ["--editable", f"{place}[{EXTRAS}]"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"pip could not install {place}: {' '.join(last)}")


def distributions(modules):
    """The distributions that loaded modules came from."""
    top = {name.partition(".")[0] for name in modules}
    brought = importlib.metadata.packages_distributions()
    return sorted({name for module in top for name in brought.get(module, ())})


def versions(names):
    """Name to installed version; names that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differing(before):
    """What has another version now than it had before, as `name 1.0 is now 2.0`; else empty."""
    now = versions(before)
    changed = {name: old for name, old in before.items() if now.get(name) != old}
    return ", ".join(f"{name} {old} is now {now.get(name)}" for name, old in changed.items())
