"""`kbench doctor`: what works on this machine and what does not; never shows a secret."""

from __future__ import annotations

import shutil
from dataclasses import replace
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
    if online and findings[0].level == "ok":  # the client can be imported
        findings = _asked(findings)
    rows += [{"level": finding.level, "what": finding.what, "todo": finding.todo} for finding in findings]
    return {"rows": rows, "ok": all(row["level"] != "error" for row in rows)}


def _asked(findings: list[signin.Finding]) -> list[signin.Finding]:
    """Return findings with what Kaggle says; what it accepts is no error, whatever it looks like from here."""
    from kbench.sources.kaggle.client import KaggleClient

    answer = KaggleClient().probe()
    if all(finding.level != "error" for finding in answer):
        return [*(replace(one, level="warning") if one.level == "error" else one for one in findings), *answer]
    return findings if any(finding.level == "error" for finding in findings) else [*findings, *answer]
