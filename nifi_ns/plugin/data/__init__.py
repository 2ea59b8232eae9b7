"""Photos and cameras of a capture: what datamanagers emit, and the same as this project's views."""
