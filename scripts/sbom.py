"""Prints what a wheel of ours holds and leads to, as CycloneDX 1.6: ``sbom.py WHEEL COMPILER``.

Packages and what asks for them are those of requirements/agent.txt, which has their hashes. What a
node or an image brings (Python, iptables, libbpf.so) is no part of the wheel, and is not told.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
import zipfile
from datetime import UTC, datetime
from pathlib import Path

OBJECT = "ipmasq_agent/planes/bpf/masq.bpf.o"
REQUIREMENTS = Path(__file__).parents[1] / "requirements/agent.txt"
LIBBPF = Path("/usr/include/bpf/libbpf_version.h")


def component(kind: str, name: str, version: str, **more: object) -> dict[str, object]:
    """Return a component that others refer to by its name."""
    return {"type": kind, "bom-ref": name, "name": name, "version": version, **more}


def hashed(content: bytes, licence: str) -> dict[str, object]:
    """Return the hash of what is shipped, and the terms on which."""
    digest = hashlib.sha256(content).hexdigest()
    return {
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"expression": licence}],
    }


wheel, compiler = Path(sys.argv[1]), sys.argv[2]
us, version = wheel.name.split("-")[0].replace("_", "-"), wheel.name.split("-")[1]
programs = zipfile.ZipFile(wheel).read(OBJECT)
needs: dict[str, list[str]] = {us: [OBJECT], OBJECT: ["libbpf headers"], "libbpf headers": []}
packages = []
for block in re.split(r"\n(?=\w)", REQUIREMENTS.read_text()):
    if pin := re.match(r"(\S+)==(\S+)", block):
        packages.append(component("library", *pin.groups(), purl=f"pkg:pypi/{pin[1]}@{pin[2]}"))
        needs.setdefault(pin[1], [])
        for parent in re.findall(r"#(?: via|  ) (\S+)", block):
            needs.setdefault(parent, []).append(pin[1])
purl = f"pkg:generic/{us}@{version}"
agent = component("application", us, version, purl=purl, **hashed(wheel.read_bytes(), "Apache-2.0"))
digits = re.findall(r"_VERSION (\d+)", LIBBPF.read_text())
terms = hashed(programs, "GPL-2.0-only OR BSD-2-Clause")
inlined = {"licenses": [{"expression": "LGPL-2.1-only OR BSD-2-Clause"}]}
packages += [
    component("file", OBJECT, hashlib.sha256(programs).hexdigest()[:12], **terms),
    component("library", "libbpf headers", ".".join(digits), **inlined),
]
bom = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([agent, packages])).urn,
    "version": 1,
    "metadata": {
        "timestamp": datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC).isoformat(),
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [{"type": "application", "name": "clang", "version": compiler}]},
        "component": agent,
    },
    "components": packages,
    "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(needs.items())],
}
print(json.dumps(bom, indent=2))
