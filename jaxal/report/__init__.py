"""What a run shows: report, figures, status, display."""
