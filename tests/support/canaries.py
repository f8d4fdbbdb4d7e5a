"""Keys that a user's shell may hold, and a look for them in what a test wrote."""

import os

# Keys that a user's shell may hold. Every test runs with them, and none may find its way into a
# file or a message.
CANARIES = {
    name: f"canary-{name.lower()}-5b1cf0"
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "WANDB_API_KEY",
        "LABEL_STUDIO_API_KEY",
    )
}
os.environ.update(CANARIES)


def leaks(folder):
    """The files below a folder that hold a canary."""
    values = [value.encode() for value in CANARIES.values()]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_size < 1e8
        and any(value in path.read_bytes() for value in values)
    ]
