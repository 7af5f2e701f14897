"""Reports: self-contained HTML files with tables, pictures and curves."""
