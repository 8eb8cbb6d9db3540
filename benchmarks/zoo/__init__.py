"""Edge models trained in about a minute each on real data, and MLPerf Tiny's: what the exporter is measured on."""
