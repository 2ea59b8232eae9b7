"""The report of a run: a self-contained HTML file."""

from nifi_ns.report.page import Report, ReportView, render_report

__all__ = ["Report", "ReportView", "render_report"]
