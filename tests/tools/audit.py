"""Checks the installed packages for known vulnerabilities (OSV); for `make check`.

    python -m tests.tools.audit

It fails if it finds one. If the service cannot be reached, it says so and succeeds.
"""

import json
import subprocess
import sys

#: Packages that come with Python, not with the requirements.
NOT_OURS = {"pip", "setuptools"}


def main() -> int:
    """Run pip-audit and print what it found; returns the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv"]
    options = ["--progress-spinner", "off", "--format", "json", "--timeout", "5"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print("pip-audit: the vulnerability service is too slow; nothing was checked")
        return 0
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"pip-audit: nothing was checked, no vulnerability service: {reason:.100}...")
        return 0
    found = [p for p in packages if p.get("vulns") and p["name"] not in NOT_OURS]
    for package in found:
        known = ", ".join(vulnerability["id"] for vulnerability in package["vulns"])
        print(f"pip-audit: {package['name']} {package['version']}: {known}", file=sys.stderr)
    if not found:
        print(f"pip-audit: no known vulnerability in {len(packages)} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
