"""Parameters from measurements: published tables, serving points, MLPerf; and the profiles that ship."""
