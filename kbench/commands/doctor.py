"""`kbench doctor`: what works on this machine and what does not; never shows a secret."""

from __future__ import annotations

import shutil
from typing import Any

from kbench.models.device import choose_device, choose_precision
from kbench.sources.kaggle import signin
from kbench.workspace import find_workspace


def doctor(*, online: bool) -> dict[str, Any]:
    """Return findings about the device, the disk and the Kaggle sign-in.

    Args:
        online: ask Kaggle once whether it accepts the sign-in.
    """
    device = choose_device("auto")
    rows = [
        {"level": "ok", "what": f"device {device}: trains in {choose_precision('auto', device, training=True)}, "
         f"predicts in {choose_precision('auto', device, training=False)}", "todo": ""},
        {"level": "ok", "what": f"{shutil.disk_usage(find_workspace().root).free / 1e9:.1f} GB free", "todo": ""},
    ]  # fmt: skip
    findings = signin.diagnose()
    if online and not any(finding.level == "error" for finding in findings):
        from kbench.sources.kaggle.client import KaggleClient

        findings = [*findings, *KaggleClient().probe()]
    rows += [{"level": finding.level, "what": finding.what, "todo": finding.todo} for finding in findings]
    return {"rows": rows, "ok": all(row["level"] != "error" for row in rows)}
