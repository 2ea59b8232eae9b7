"""The report of a run: one HTML file that holds everything it shows."""

from nifi_ns.report.page import Report, ReportView, render_report

__all__ = ["Report", "ReportView", "render_report"]
