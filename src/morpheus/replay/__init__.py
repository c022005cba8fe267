"""Attack replay: inject attack techniques into users' logs, and count which raise an alert."""
