"""What several test files share: networks, faults, counters of work, and the guards that mutants take away."""
