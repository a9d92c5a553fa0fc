"""The runtime: opens an artifact and answers. Needs numpy, onnxruntime and jinja2, nothing heavier."""

import os

# onnxruntime's wheels report their use to Microsoft unless this is set before they are imported. Nothing that
# runs on a device should leave it unasked; set it to 0 to have it back.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
