"""What is said of the machine and of the code."""

import subprocess

from shfcas_lib.storage import machine


def test_released_results_do_not_make_the_code_look_changed(tmp_path, monkeypatch):
    for name in ("shfcas_lib/storage/machine.py", "docs/results/rows.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(
        machine, "__file__", str(tmp_path / "shfcas_lib" / "storage" / "machine.py")
    )
    clean = machine.commit()
    assert len(clean) == 40
    (tmp_path / "docs/results/rows.csv").write_text("2")
    assert machine.commit() == clean
    (tmp_path / "shfcas_lib/storage/machine.py").write_text("2")
    assert machine.commit() == clean + "+changes"
