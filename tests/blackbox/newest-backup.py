#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""newest-backup.py REPOSITORY DISK KEY: what the last manifest that has DISK says of it.

For the key "file" the absolute path is printed, for "manifest" the path of the manifest, and for
"list" that of the list of digests, or None.
"""

import glob
import json
import sys

repository, disk, key = sys.argv[1:]
found = []
for path in glob.glob(glob.escape(repository) + "/backups/*.json"):
    try:
        with open(path, encoding="utf-8") as f:
            manifest = json.load(f)
    except ValueError:
        continue  # a test has damaged it
    for entry in manifest["disks"]:
        if entry["id"] == disk and entry["file"]:
            found.append((manifest["sequence"], path, entry))
sequence, path, entry = max(found, key=lambda x: x[0])
entry["manifest"] = path
entry["file"] = f"{repository}/{entry['file']}"
entry["list"] = f"{repository}/{entry['digests']['file']}" if entry.get("digests") else None
print(entry[key])
