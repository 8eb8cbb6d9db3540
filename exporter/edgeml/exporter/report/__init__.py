"""What an export found out, for programs (JSON), people (one HTML file) and terminals."""

from edgeml.exporter.report.structs import ArtifactReport, Latency, Report, Stage, to_json, verdict_of
from edgeml.exporter.report.write import write_report

__all__ = ["ArtifactReport", "Latency", "Report", "Stage", "to_json", "verdict_of", "write_report"]
