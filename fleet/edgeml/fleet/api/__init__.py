"""The service over HTTP: devices, operators, signed files, and the page."""
