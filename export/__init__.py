"""The exporter: a Gemma 3n checkpoint becomes an artifact. Needs the extra `edge-gemma[export]`."""
