"""Measurements. Each prints machine, versions and command, a table, and one line of JSON at the end."""
