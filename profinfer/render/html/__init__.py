"""Layer 7: a report as one HTML file that loads nothing: tables that sort, charts in SVG."""
